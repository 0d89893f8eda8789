//! Answers and what holds them up.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::Value;
use tokio::sync::mpsc;

use super::gate::{Admitted, Full as TooMany};
use super::route::NoRoute;
use crate::cri::CriError;
use crate::metrics::served;

/// A body that may be a stream.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a request holds while it is answered: its place among the others, and its figure.
#[derive(Debug)]
pub struct Work {
    /// Its place; none on the port that everybody may read.
    pub place: Option<Admitted>,
    /// Its figure.
    pub figure: served::Request,
}

/// An answer that is a refusal: status and text, as kubelet writes it.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

/// An answer or a refusal.
pub type Answer = Result<Response<Body>, Refusal>;

impl From<CriError> for Refusal {
    fn from(error: CriError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<TooMany> for Refusal {
    fn from(_: TooMany) -> Self {
        let content = "too many requests are in work; end some, or try again\n".to_owned();
        Self(StatusCode::TOO_MANY_REQUESTS, content)
    }
}

impl From<NoRoute> for Refusal {
    fn from(error: NoRoute) -> Self {
        match error {
            NoRoute::NotFound => Self(StatusCode::NOT_FOUND, "404: Page Not Found".to_owned()),
            NoRoute::WrongMethod(_) => Self(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed".to_owned()),
            NoRoute::Disabled(sentence) => Self(StatusCode::METHOD_NOT_ALLOWED, format!("{sentence}\n")),
        }
    }
}

/// A body that is there already.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A whole answer.
pub fn answer(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Text.
pub fn plain(status: StatusCode, content: impl Into<String>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", content.into())
}

/// An answer that comes in pieces; an error among them breaks it off.
pub fn streamed<T: Into<Bytes> + Send + 'static>(
    kind: &'static str,
    pieces: mpsc::Receiver<std::io::Result<T>>,
) -> Response<Body> {
    let pieces = stream::unfold(pieces, |mut rx| async move { rx.recv().await.map(|piece| (piece, rx)) });
    let frames = pieces.map_ok(|piece| Frame::data(piece.into()));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// JSON.
pub fn document(value: &Value) -> Response<Body> {
    answer(StatusCode::OK, "application/json", value.to_string())
}

/// The refusal of a path, with the methods that it has.
pub fn no_route(error: NoRoute) -> Response<Body> {
    let allowed = match error {
        NoRoute::WrongMethod(allowed) => Some(HeaderValue::from_static(allowed)),
        NoRoute::NotFound | NoRoute::Disabled(_) => None,
    };
    let Refusal(status, content) = error.into();
    let mut response = plain(status, content);
    if let Some(allowed) = allowed {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Keeps the request's work in hand until its answer is sent or given up.
pub fn held(response: Response<Body>, work: Work) -> Response<Body> {
    response.map(|body| Held { body, _work: work }.boxed_unsync())
}

struct Held {
    body: Body,
    _work: Work,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
