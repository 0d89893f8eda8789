//! Class E: what a caller without rights can make the server hold, and that others are answered meanwhile.

use super::*;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET / https`, and an authority of one byte, by the static table of HPACK.
const HEAD_OF_GET: [u8; 6] = [0x82, 0x84, 0x87, 0x41, 0x01, b'n'];
const END_OF_HEADERS_AND_STREAM: u8 = 0x5;

/// Whether the server has ended the connection within ten seconds.
async fn is_ended(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.is_ok()
}

async fn others_are_answered(rig: &Rig) {
    let asked = tokio::time::timeout(Duration::from_secs(5), rig.ask(true, "GET /healthz HTTP/1.1"));
    assert_eq!(asked.await.expect("in time"), Some((StatusCode::OK, "ok".to_owned())));
}

/// CVE-2023-44487: streams that are reset as soon as they are opened cost the server work, and nobody counts them as open.
#[tokio::test]
async fn streams_that_are_reset_at_once_end_their_connection() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    for with_certificate in [false, true] {
        let mut stream = rig.connect(with_certificate).await;
        let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
        for number in 0..2000u32 {
            bytes.extend(frame(1, END_OF_HEADERS_AND_STREAM, 2 * number + 1, &HEAD_OF_GET));
            bytes.extend(frame(3, 0, 2 * number + 1, &8u32.to_be_bytes()));
        }
        // The server may close before all is written.
        let _ = stream.write_all(&bytes).await;
        assert!(is_ended(&mut stream).await, "2000 resets and it is still open");
        others_are_answered(&rig).await;
    }
}

/// CVE-2024-27316 and its kin: a head that goes on in frame after frame is kept until it ends, which is never.
#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_in_http_2_too() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    let mut stream = rig.connect(true).await;
    let begin = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 0x1, 1, &HEAD_OF_GET)].concat();
    stream.write_all(&begin).await.unwrap();
    // A literal header without indexing: name "x", value of 16 000 bytes (0x7f and 16 000 - 127 in sevens).
    let literal = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7c][..], &vec![b'y'; 16_000]].concat();
    let mut written = 0;
    for _ in 0..1000 {
        let sent = tokio::time::timeout(Duration::from_secs(10), stream.write_all(&frame(9, 0, 1, &literal))).await;
        if !matches!(sent, Ok(Ok(()))) {
            break;
        }
        written += literal.len();
    }
    assert!(is_ended(&mut stream).await, "{written} bytes of a head and it is still open");
    others_are_answered(&rig).await;
}

/// Slowloris: a byte now and then keeps a timer of silence from ever ending.
#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_has_its_time_and_no_more() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    let mut stream = rig.connect(false).await;
    let began = tokio::time::Instant::now();
    stream.write_all(b"GET /pods HTTP/1.1\r\nX: ").await.unwrap();
    let mut trickled = 0;
    let ended = loop {
        let mut some = [0; 256];
        tokio::select! {
            read = stream.read(&mut some) => if matches!(read, Ok(0) | Err(_)) { break began.elapsed() },
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if stream.write_all(b"y").await.is_err() {
                    break began.elapsed();
                }
                trickled += 1;
                assert!(trickled < 60, "a minute, and it is still open");
            }
        }
    };
    assert!(trickled >= 5 && ended <= 2 * PATIENCE, "{ended:?}");
}

/// What callers hold while their tokens are being looked up is bounded, and those with certificates do not wait for it.
#[tokio::test]
async fn an_api_server_that_does_not_answer_reviews_holds_up_only_those_who_need_one() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(api(Authorization::AlwaysAllow, silent.local_addr().unwrap())).await;
    let mut waiting = Vec::new();
    for number in 0..2 * gate::UNPROVEN {
        let mut stream = rig.connect(false).await;
        let head = format!("GET /pods HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer stolen-{number}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    others_are_answered(&rig).await;
    let mut gone = 0;
    for stream in &mut waiting {
        let mut some = [0; 256];
        let read = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut some)).await;
        gone += usize::from(read.is_ok());
    }
    assert!(gone >= gate::UNPROVEN - 1, "only {gone} of {} had to go", waiting.len());
}
