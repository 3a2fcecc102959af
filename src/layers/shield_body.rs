//! Rack's known weak spots in a body: multipart and form data, judged when the body is complete and before it waits for a slot.
//!
//! Threat: exhaustion, by bodies that Rack parses slowly or holds in memory (rule T13; the CVEs are named in `multipart` and
//! `parameters`; CVE-2025-61919 for the size of forms). Answer: 400, 413 or 431, and the connection is closed. Stands behind
//! `buffer`, before `in_flight`.
//!
//! A body in memory is judged at once. A body in a file is read in pieces of 64 KiB, and the thread is given away between them.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header::CONTENT_TYPE};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    buffer::{Complete, Content},
    content_type::ContentType,
    multipart::{Fault, Scanner},
    parameters::Parameters,
    shield_config::Config,
};
use crate::{
    guard::rule::Rule,
    http::arrival::{Arrival, Notes},
    refusal::Refusal,
    units::Mode,
};

/// Makes [`ShieldBody`].
#[derive(Clone, Debug)]
pub struct ShieldBodyLayer {
    config: Arc<Config>,
}

impl ShieldBodyLayer {
    /// From the configuration, the same as for the head.
    pub fn new(config: Config) -> Self {
        ShieldBodyLayer { config: Arc::new(config) }
    }
}

impl<S> Layer<S> for ShieldBodyLayer {
    type Service = ShieldBody<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ShieldBody { inner, config: Arc::clone(&self.config) }
    }
}

/// Keeps from Rack the bodies that it cannot take.
#[derive(Clone, Debug)]
pub struct ShieldBody<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, R> Service<Request<Complete>> for ShieldBody<S>
where
    S: Service<Request<Complete>, Response = Response<R>, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Judged<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Complete>) -> Self::Future {
        let Some(mut judge) = Judge::of(&self.config, &request) else {
            return Judged::Passed { inner: self.inner.call(request) };
        };
        match request.body().content() {
            Content::None => Judged::Passed { inner: self.inner.call(request) },
            Content::Memory(bytes) => match judge.whole(bytes).and_then(|verdict| verdict.settle(&request)) {
                Ok(()) => Judged::Passed { inner: self.inner.call(request) },
                Err(refusal) => Judged::Refused { refusal },
            },
            Content::File(_) => {
                let mut inner = self.inner.clone();
                Judged::Reading {
                    reading: Box::pin(async move {
                        let verdict = match request.body().content() {
                            Content::File(file) => judge.pieces(file.len(), |offset, into| file.read_at(offset, into)).await?,
                            Content::Memory(_) | Content::None => Verdict::Fits,
                        };
                        verdict.settle(&request)?;
                        inner.call(request).await
                    }),
                }
            }
        }
    }
}

pin_project! {
    /// Refused, passed on, or still reading a file.
    #[project = JudgedProjection]
    pub enum Judged<F, R> {
        /// The inner service was not called.
        Refused {
            refusal: Refusal,
        },
        /// The inner service decides.
        Passed {
            #[pin]
            inner: F,
        },
        /// The body is in a file; boxed, as only large bodies are.
        Reading {
            reading: Pin<Box<dyn Future<Output = Result<Response<R>, Refusal>> + Send>>,
        },
    }
}

impl<F, R> std::fmt::Debug for Judged<F, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Judged::Refused { .. } => "Refused",
            Judged::Passed { .. } => "Passed",
            Judged::Reading { .. } => "Reading",
        })
    }
}

impl<F, R> Future for Judged<F, R>
where
    F: Future<Output = Result<Response<R>, Refusal>>,
{
    type Output = Result<Response<R>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            JudgedProjection::Refused { refusal } => Poll::Ready(Err(*refusal)),
            JudgedProjection::Passed { inner } => inner.poll(cx),
            JudgedProjection::Reading { reading } => reading.as_mut().poll(cx),
        }
    }
}

/// What reads a body, by its type.
#[derive(Debug)]
struct Judge {
    kind: Kind,
    mode: Mode,
    terminated: Mode,
}

#[derive(Debug)]
enum Kind {
    Multipart(Box<Scanner>),
    Form { counter: Parameters, bytes: u64 },
}

/// What was found, and whether it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fits,
    Noted,
}

impl Verdict {
    fn settle(self, request: &Request<Complete>) -> Result<(), Refusal> {
        if self == Verdict::Noted {
            note(request.extensions().get::<Arrival>().map(|arrival| &*arrival.notes));
        }
        Ok(())
    }
}

fn note(notes: Option<&Notes>) {
    if let Some(notes) = notes {
        notes.observe(Rule::T13);
    }
}

impl Judge {
    /// `None` where the body is of no type that Rack parses, or nobody asks.
    fn of(config: &Config, request: &Request<Complete>) -> Option<Self> {
        if matches!(request.body().content(), Content::None) {
            return None;
        }
        let value = request.headers().get(CONTENT_TYPE)?.as_bytes();
        let read = ContentType::parse(value, config.content_type.boundary)?;
        if read.is_form() && config.form.mode != Mode::Off {
            let kind = Kind::Form { counter: Parameters::new(config.form.bounds()), bytes: config.form.bytes.0 };
            return Some(Judge { kind, mode: config.form.mode, terminated: Mode::Off });
        }
        let boundary = read.boundary.filter(|_| read.is_multipart() && config.multipart.mode != Mode::Off)?;
        let kind = Kind::Multipart(Box::new(Scanner::new(boundary, config.multipart.bounds())));
        Some(Judge { kind, mode: config.multipart.mode, terminated: config.multipart.terminated })
    }

    fn whole(&mut self, bytes: &[u8]) -> Result<Verdict, Refusal> {
        match self.size(u64::try_from(bytes.len()).unwrap_or(u64::MAX)).and_then(|()| self.feed(bytes, true)) {
            Ok(_) => Ok(Verdict::Fits),
            Err(fault) => self.weigh(fault),
        }
    }

    /// Reads `length` bytes in pieces. What a piece leaves over is shorter than a part's header.
    async fn pieces(&mut self, length: u64, read_at: impl Fn(u64, &mut [u8]) -> io::Result<usize>) -> Result<Verdict, Refusal> {
        if let Err(fault) = self.size(length) {
            return self.weigh(fault);
        }
        let mut window = Vec::new();
        let mut offset = 0_u64;
        loop {
            let held = window.len();
            window.resize(held.saturating_add(PIECE), 0);
            let read = read_at(offset, window.get_mut(held..).unwrap_or_default()).map_err(|_| Refusal::Internal)?;
            window.truncate(held.saturating_add(read));
            offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            let last = offset >= length;
            if read == 0 && !last {
                return Err(Refusal::Internal);
            }
            match self.feed(&window, last) {
                Ok(taken) => drop(window.drain(..taken.min(window.len()))),
                Err(fault) => return self.weigh(fault),
            }
            if last {
                return Ok(Verdict::Fits);
            }
            tokio::task::yield_now().await;
        }
    }

    fn size(&self, length: u64) -> Result<(), Fault> {
        match &self.kind {
            Kind::Form { bytes, .. } if length > *bytes => Err(Fault::Size),
            Kind::Form { .. } | Kind::Multipart(_) => Ok(()),
        }
    }

    fn feed(&mut self, window: &[u8], last: bool) -> Result<usize, Fault> {
        match &mut self.kind {
            Kind::Multipart(scanner) => scanner.feed(window, last),
            Kind::Form { counter, .. } => counter.feed(window).map(|()| window.len()).map_err(|_| Fault::Count),
        }
    }

    fn weigh(&self, fault: Fault) -> Result<Verdict, Refusal> {
        let (mode, refusal) = match fault {
            Fault::Shape => (self.mode, Refusal::Denied(Rule::T13)),
            Fault::Cut => (if self.mode == Mode::Enforce { self.terminated } else { self.mode }, Refusal::Denied(Rule::T13)),
            Fault::Count => (self.mode, Refusal::Denied(Rule::T13Size)),
            Fault::Size => (self.mode, Refusal::BodyTooLarge),
        };
        match mode {
            Mode::Enforce => Err(refusal),
            Mode::Observe => Ok(Verdict::Noted),
            Mode::Off => Ok(Verdict::Fits),
        }
    }
}

const PIECE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tower::{ServiceExt, service_fn};

    use super::{super::fixture, *};

    async fn send(config: Config, content_type: &str, body: &str) -> Result<(), Refusal> {
        let app = service_fn(|_: Request<Complete>| async { Ok::<_, Refusal>(Response::new(())) });
        let content = Content::Memory(Bytes::copy_from_slice(body.as_bytes()).into());
        let request = fixture::arrived("/").header("content-type", content_type).body(Complete::for_test(content)).unwrap();
        ShieldBodyLayer::new(config).layer(app).oneshot(request).await.map(drop)
    }

    const MULTIPART: &str = "multipart/form-data; boundary=b";
    const FORM: &str = "application/x-www-form-urlencoded";

    #[tokio::test]
    async fn honest_bodies_pass() {
        let part = "--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n";
        for (content_type, body) in [
            (MULTIPART, [part, "--b--\r\n"].concat()),
            ("multipart/form-data; boundary=\"a b:c\"", "--a b:c\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n-".to_owned()),
            (FORM, "name=zoe&city=paris&x[y][]=1".to_owned()),
            ("application/json", "[".repeat(100)),
            ("text/plain", "&".repeat(9000)),
            ("not a type", "x".to_owned()),
        ] {
            assert_eq!(send(Config::default(), content_type, &body).await, Ok(()), "{content_type}");
        }
    }

    #[tokio::test]
    async fn cve_2025_46727_and_cve_2025_61919_forms_without_bound() {
        assert_eq!(send(Config::default(), FORM, &"a&".repeat(4097)).await, Err(Refusal::Denied(Rule::T13Size)));
        assert_eq!(send(Config::default(), FORM, &format!("a{}=1", "[b]".repeat(33))).await, Err(Refusal::Denied(Rule::T13Size)));
        assert_eq!(send(Config::default(), FORM, &"a".repeat((4 << 20) + 1)).await, Err(Refusal::BodyTooLarge));
    }

    #[tokio::test]
    async fn multipart_bodies_that_rack_cannot_take_are_refused() {
        for (body, refusal) in [
            ("--b\r\nContent-Disposition: form-data".to_owned(), Refusal::Denied(Rule::T13)),
            ("--b\r\n\r\ncut in its content".to_owned(), Refusal::Denied(Rule::T13)),
            ("--b\r\n\r\nx\r\n".repeat(4097) + "--b--", Refusal::Denied(Rule::T13Size)),
            ("p".repeat(300_000) + "\r\n--b--\r\n", Refusal::BodyTooLarge),
        ] {
            assert_eq!(send(Config::default(), MULTIPART, &body).await, Err(refusal), "{body:.60}");
        }
    }

    #[tokio::test]
    async fn modes_are_obeyed() {
        let observe: Config = serde_json::from_str(r#"{"multipart": {"mode": "observe"}, "form": {"mode": "off"}}"#).unwrap();
        assert_eq!(send(observe, MULTIPART, "nothing").await, Ok(()));
        assert_eq!(send(observe, FORM, &"a&".repeat(4097)).await, Ok(()));
        let cut: Config = serde_json::from_str(r#"{"multipart": {"terminated": "observe"}}"#).unwrap();
        assert_eq!(send(cut, MULTIPART, "--b\r\n\r\nx").await, Ok(()));
    }

    #[tokio::test]
    async fn a_file_is_judged_piece_by_piece_like_memory() {
        let part = "--b\r\nContent-Disposition: form-data; name=\"x\"; filename=\"y\"\r\n\r\n".to_owned() + &"z".repeat(200_000) + "\r\n";
        for (body, fits) in [(part.repeat(3) + "--b--\r\n", true), (part.repeat(3), false), (part.repeat(129) + "--b--\r\n", false)] {
            let request = fixture::arrived("/").header("content-type", MULTIPART);
            let request = request.body(Complete::for_test(Content::Memory(Bytes::new().into()))).unwrap();
            let mut judge = Judge::of(&Config::default(), &request).unwrap();
            let bytes = body.as_bytes();
            let read_at = |offset: u64, into: &mut [u8]| {
                let rest = &bytes[usize::try_from(offset).unwrap()..];
                let n = rest.len().min(into.len()).min(50_000);
                into[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            };
            let verdict = judge.pieces(bytes.len() as u64, read_at).await;
            assert_eq!(verdict.is_ok(), fits);
        }
    }
}
