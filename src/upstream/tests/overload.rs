//! More requests than Puma can serve, through the queue, against a real Puma.

use tower_layer::Layer;

use super::{real::RealPuma, *};
use crate::layers::in_flight::{InFlight, InFlightLayer};

/// Stands for the layers between the queue and Puma: they write the head.
#[derive(Clone)]
struct Heads(Puma);

impl Service<Request<Complete>> for Heads {
    type Response = Response<Answer>;
    type Error = Refusal;
    type Future = <Puma as Service<Request<Canonical>>>::Future;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Refusal>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Complete>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let head = format!("GET {} HTTP/1.1\r\nHost: app\r\nX-Request-Id: {}\r\n\r\n", parts.uri.path(), parts.uri.query().unwrap_or("-"));
        self.0.call(Request::from_parts(parts, Canonical::forged(&head, body)))
    }
}

fn queued(way: &Way) -> InFlight<Heads> {
    InFlightLayer::new(&in_flight::Config::default(), way.slots.clone()).layer(Heads(way.puma.clone()))
}

async fn fetch(mut stack: InFlight<Heads>, target: String, ip: [u8; 4]) -> (Result<u16, Refusal>, Duration) {
    let start = Instant::now();
    let mut request = Request::new(Complete::for_test(Content::None));
    *request.uri_mut() = target.parse().unwrap();
    let client = Client { ip: ip.into(), ..Client::local() };
    request.extensions_mut().insert(Arrival { client: Arc::new(client), ..arrival() });
    let answer = match stack.call(request).await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            answer.into_body().collect().await.map(|_| status)
        }
        Err(refusal) => Err(refusal),
    };
    (answer, start.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_overload_costs_no_goodput_and_refusals_come_at_once() {
    let puma = RealPuma::start(&["-t", "2:2"]);
    let way = Way::new(Config { slots: Some(2), ..config(puma.address()) });
    let stack = queued(&way);
    // What two clients in a closed loop get: the capacity, about 90 a second.
    let end = Instant::now() + Duration::from_secs(1);
    let closed: Vec<_> = (0..2)
        .map(|_| {
            let stack = stack.clone();
            tokio::spawn(async move {
                let mut served = 0u32;
                while Instant::now() < end {
                    assert_eq!(fetch(stack.clone(), "/work".into(), [10, 0, 0, 1]).await.0, Ok(200));
                    served += 1;
                }
                served
            })
        })
        .collect();
    let mut capacity = 0;
    for client in closed {
        capacity += client.await.unwrap();
    }
    let seconds = 4;
    let mut asked = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for n in 0..seconds * 100u32 {
        tick.tick().await;
        for m in 0..10u8 {
            asked.push(tokio::spawn(fetch(stack.clone(), "/work".into(), [10, 0, u8::try_from(n % 200).unwrap(), m])));
        }
    }
    let served_in_time = puma_served(&way, &mut asked).await;
    let (served, mut refused, longest) = served_in_time;
    refused.sort_unstable();
    let at_once = refused.iter().filter(|after| **after < Duration::from_millis(50)).count();
    println!(
        "capacity {capacity}/s, served {served} in {seconds} s, refused {} ({at_once} at once), longest admitted {longest:?}",
        refused.len()
    );
    assert!(served >= capacity * seconds * 9 / 10, "{served} of {}", capacity * seconds);
    assert!(at_once * 10 >= refused.len() * 9, "{at_once} of {}", refused.len());
    assert!(longest < Duration::from_millis(5500), "{longest:?}");
}

async fn puma_served(
    way: &Way,
    asked: &mut Vec<tokio::task::JoinHandle<(Result<u16, Refusal>, Duration)>>,
) -> (u32, Vec<Duration>, Duration) {
    let (mut served, mut refused, mut longest) = (0, Vec::new(), Duration::ZERO);
    for answer in asked.drain(..) {
        match answer.await.unwrap() {
            (Ok(status), after) => {
                assert_eq!(status, 200);
                served += 1;
                longest = longest.max(after);
            }
            (Err(Refusal::QueueFull { .. } | Refusal::QueueTimeout { .. }), after) => refused.push(after),
            (Err(other), _) => panic!("{other:?}"),
        }
    }
    assert!(way.all_slots_free().await);
    (served, refused, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_the_queue_are_never_served() {
    let puma = RealPuma::start(&["-t", "2:2"]);
    let way = Way::new(Config { slots: Some(2), ..config(puma.address()) });
    let stack = queued(&way);
    let asked: Vec<_> = (0..90u32).map(|n| tokio::spawn(fetch(stack.clone(), format!("/work?left-{n}"), [10, 0, 1, 1]))).collect();
    while way.slots.figures().waiting < 88 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (leaving, staying): (Vec<_>, Vec<_>) = asked.into_iter().enumerate().partition(|(n, _)| *n < 80);
    for (_, task) in &leaving {
        task.abort();
    }
    for (_, task) in staying {
        assert_eq!(task.await.unwrap().0, Ok(200));
    }
    assert!(way.all_slots_free().await);
    let seen = puma.seen().len();
    assert!((10..=16).contains(&seen), "{seen} reached the application");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_with_many_slow_requests_does_not_slow_the_others() {
    let puma = RealPuma::start(&["-t", "5:5"]);
    let way = Way::new(config(puma.address()));
    let stack = queued(&way);
    fetch(stack.clone(), "/fast".into(), [10, 0, 0, 2]).await.0.unwrap();
    let slow: Vec<_> = (0..20).map(|_| tokio::spawn(fetch(stack.clone(), "/slow".into(), [10, 0, 0, 1]))).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let (status, after) = fetch(stack.clone(), "/fast".into(), [10, 0, 0, 2]).await;
        assert_eq!(status, Ok(200));
        longest = longest.max(after);
    }
    for task in slow {
        task.abort();
    }
    assert!(longest < Duration::from_millis(200), "a slow request takes 400 ms, a fast one waited {longest:?}");
}
