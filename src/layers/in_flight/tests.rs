use std::{sync::Arc, task::Poll, time::Instant};

use bytes::Bytes;
use http::Response;
use tokio::sync::mpsc;
use tower_layer::Layer;

use super::*;
use crate::{
    accept::client::Client,
    http::arrival::{Names, Notes},
};

/// Stands for everything behind the queue: hands each request out, with its slot.
#[derive(Clone)]
struct Inside(mpsc::UnboundedSender<Request<Complete>>);

impl Service<Request<Complete>> for Inside {
    type Response = Response<()>;
    type Error = Refusal;
    type Future = std::future::Ready<Result<Response<()>, Refusal>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Complete>) -> Self::Future {
        std::future::ready(self.0.send(request).map(|()| Response::new(())).map_err(|_| Refusal::Internal))
    }
}

struct Case {
    service: InFlight<Inside>,
    slots: Slots,
    admitted: mpsc::UnboundedReceiver<Request<Complete>>,
}

impl Case {
    fn new(config: &Config, threads: u32) -> Self {
        let slots = Slots::new(config.policy(Duration::from_millis(200)));
        slots.set_workers(&[threads]);
        let (inside, admitted) = mpsc::unbounded_channel();
        Case { service: InFlightLayer::new(config, slots.clone()).layer(Inside(inside)), slots, admitted }
    }

    fn call(&mut self, path: &str) -> Admitted<Response<()>, std::future::Ready<Result<Response<()>, Refusal>>> {
        self.service.call(request(path))
    }

    fn next(&mut self) -> (String, Slot) {
        let request = self.admitted.try_recv().unwrap();
        let path = request.uri().path().to_owned();
        (path, request.into_body().into_parts().0.unwrap())
    }
}

fn request(path: &str) -> Request<Complete> {
    let mut request = Request::new(Complete::for_test(Content::Memory(Bytes::from_static(b"body").into())));
    *request.uri_mut() = path.parse().unwrap();
    let (client, notes) = (Arc::new(Client::local()), Arc::new(Notes::new(Instant::now())));
    request.extensions_mut().insert(Arrival { client, target: Bytes::new(), notes, sent: Names::ANY });
    request
}

#[tokio::test]
async fn a_free_thread_is_taken_without_waiting() {
    let mut case = Case::new(&Config::default(), 1);
    let answer = case.call("/a");
    assert!(matches!(answer, Admitted::Direct { .. }));
    answer.await.unwrap();
    let request = case.admitted.try_recv().unwrap();
    assert!(request.extensions().get::<Arrival>().unwrap().notes.when(Moment::Admitted).is_some());
    assert_eq!(case.slots.figures().in_flight, 1);
    drop(request);
    assert_eq!(case.slots.figures().in_flight, 0);
}

#[tokio::test]
async fn a_thread_that_comes_free_goes_to_the_most_urgent() {
    let mut case = Case::new(&Config::default(), 1);
    case.call("/a").await.unwrap();
    let (_, slot) = case.next();
    let page = tokio::spawn(case.call("/b"));
    let health = tokio::spawn(case.call("/up"));
    tokio::task::yield_now().await;
    drop(slot);
    health.await.unwrap().unwrap();
    let (path, slot) = case.next();
    assert_eq!(path, "/up");
    drop(slot);
    page.await.unwrap().unwrap();
    assert_eq!(case.next().0, "/b");
}

#[tokio::test]
async fn a_request_that_is_given_up_never_reaches_puma() {
    let mut case = Case::new(&Config::default(), 1);
    case.call("/a").await.unwrap();
    let (_, slot) = case.next();
    drop(case.call("/b"));
    let waiting = case.call("/c");
    drop(slot);
    waiting.await.unwrap();
    assert_eq!(case.next().0, "/c");
    assert!(case.admitted.try_recv().is_err());
}

#[tokio::test]
async fn a_thread_that_was_granted_to_nobody_goes_to_the_next() {
    let mut case = Case::new(&Config::default(), 1);
    case.call("/a").await.unwrap();
    let (_, slot) = case.next();
    let (gone, waiting) = (case.call("/b"), case.call("/c"));
    drop(slot);
    // The thread is on its way to /b, which goes away before it looks.
    drop(gone);
    waiting.await.unwrap();
    assert_eq!(case.next().0, "/c");
    assert_eq!(case.slots.figures().in_flight, 0);
}

#[tokio::test]
async fn the_deadline_and_the_bound_are_refusals() {
    let config = Config { deadline: Deadline::millis(60), max: Max::Requests(1), ..Config::default() };
    let mut case = Case::new(&config, 1);
    case.call("/a").await.unwrap();
    let held = case.next();
    let waiting = case.call("/b");
    assert!(matches!(case.call("/c").await.unwrap_err(), Refusal::QueueFull { after: 1.. }));
    assert!(matches!(waiting.await.unwrap_err(), Refusal::QueueTimeout { .. }));
    drop(held);
}

#[tokio::test]
async fn a_puma_that_is_away_is_waited_for_and_then_refused() {
    let mut case = Case::new(&Config::default(), 1);
    case.slots.set_down(0, true);
    let waiting = case.call("/a");
    let (slots, back) = (case.slots.clone(), Duration::from_millis(50));
    tokio::spawn(async move {
        tokio::time::sleep(back).await;
        slots.set_down(0, false);
    });
    waiting.await.unwrap();
    drop(case.next());
    case.slots.set_down(0, true);
    assert_eq!(case.call("/b").await.unwrap_err(), Refusal::UpstreamRefused);
}

#[test]
fn the_configuration_reads_its_documented_form() {
    let text = r#"{
        "deadline": "2s", "max": "auto", "memory": "1MiB", "overload_order": "fifo", "per_client_share": 0.5, "stream_share": 1,
        "class": [
            { "name": "health", "match": { "path": ["/up", "/health*"] }, "priority": 0, "reserve": 1 },
            { "name": "reports", "match": { "path": "/reports/*" }, "priority": 200 }
        ]
    }"#;
    let read = serde_json::from_str::<Config>;
    let config = read(text).unwrap();
    let layer = InFlightLayer::new(&config, Slots::new(config.policy(Duration::ZERO)));
    let classes: Vec<_> = ["/up", "/healthz", "/", "/reports/1"].iter().map(|path| layer.classes.of(path)).collect();
    assert_eq!(classes, [0, 0, 1, 2]);
    assert_eq!(config.policy(Duration::ZERO).reserves, [1, 0, 0]);
    assert_eq!(read(r#"{"max": 7}"#).unwrap().max, Max::Requests(7));
    for bad in [
        r#"{"max": "many"}"#,
        r#"{"max": -1}"#,
        r#"{"per_client_share": 1.5}"#,
        r#"{"stream_share": -0.1}"#,
        r#"{"deadline": "0s"}"#,
        r#"{"unknown": 1}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}
