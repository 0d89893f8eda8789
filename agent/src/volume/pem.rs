//! PEM text (RFC 7468), as projected volumes show it. Pure.

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Label of a certificate.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
/// Label of a key in PKCS#8.
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Width of lines (section 2).
const LINE: usize = 64;

/// The certificates of a text, without what is between them.
pub(super) fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes());
    found.map(|der| der.map(|der| der.to_vec()).map_err(|e| format!("not PEM text: {e}"))).collect()
}

/// One block.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / LINE + 2 * label.len() + 40);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn text_says_what_went_into_it_in_lines_of_64(
            ders in proptest::collection::vec(proptest::collection::vec(0u8.., 1..200), 0..6),
        ) {
            let all: String = ders.iter().map(|der| format!("spoken\n{}", encode(CERTIFICATE, der))).collect();
            proptest::prop_assert!(all.lines().all(|line| line.len() <= LINE && !line.is_empty()));
            proptest::prop_assert_eq!(certificates(&all), Ok(ders));
        }
    }
}
