//! Connections, retries and slots, with a scripted Puma.

use super::*;
use crate::{
    http::upgrade::FarEnd,
    upstream::{Health, Reuse},
};

fn kept(address: &Address) -> Config {
    Config { reuse: Reuse::Keepalive, ..config(address.clone()) }
}

#[tokio::test]
async fn an_unknown_puma_is_asked_to_close_each_time() {
    let puma = Scripted::new(vec![Say::Keep(ok("one")), Say::Keep(ok("two"))]);
    let way = Way::new(config(puma.address.clone()));
    assert_eq!(way.get("/1").await.unwrap(), (200, Bytes::from("one")));
    assert_eq!(way.get("/2").await.unwrap(), (200, Bytes::from("two")));
    assert_eq!(puma.connections(), [0, 1]);
    assert_eq!(puma.request(0), "GET /1 HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
}

#[tokio::test]
async fn kept_alive_requests_share_a_connection_and_go_out_as_they_are() {
    let puma = Scripted::new(vec![Say::Keep(ok("one")), Say::Keep(ok("two")), Say::Keep(ok(""))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.get("/1").await.unwrap().1, "one");
    assert_eq!(way.post("/2", b"body").await.unwrap().1, "two");
    assert_eq!(way.get("/3").await.unwrap().1, "");
    assert_eq!(puma.connections(), [0, 0, 0]);
    assert_eq!(puma.request(1), "POST /2 HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
}

#[tokio::test]
async fn a_method_that_puma_may_refuse_gets_a_connection_of_its_own() {
    let puma = Scripted::new(vec![Say::Keep(ok("one")), Say::Keep(ok("two")), Say::Keep(ok("three"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.get("/1").await.unwrap().1, "one");
    assert_eq!(way.fetch("REPORT /2 HTTP/1.1\r\nHost: app\r\n\r\n", b"").await.unwrap().1, "two");
    assert_eq!(way.get("/3").await.unwrap().1, "three");
    assert_eq!(puma.connections()[..2], [0, 1]);
}

#[tokio::test]
async fn bytes_behind_an_answer_cost_the_connection_and_reach_nobody() {
    for length in [3, 60_000, 64 * 1024, 64 * 1024 + 1, 200_000] {
        let body = "x".repeat(length);
        let mut surplus = ok(&body);
        surplus.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
        let puma = Scripted::new(vec![Say::Keep(surplus), Say::Keep(ok("two"))]);
        let way = Way::new(kept(&puma.address));
        assert_eq!(way.get("/1").await.unwrap().1, body);
        assert_eq!(way.get("/2").await.unwrap().1, "two");
        assert_eq!(puma.connections(), [0, 1], "{length}");
    }
}

#[tokio::test]
async fn an_answer_that_closes_is_not_followed_by_a_request() {
    let puma =
        Scripted::new(vec![Say::Keep(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na".to_vec()), Say::Keep(ok("b"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.get("/").await.unwrap().1, "a");
    assert_eq!(way.get("/").await.unwrap().1, "b");
    assert_eq!(puma.connections(), [0, 1]);
}

#[tokio::test]
async fn a_used_connection_that_ends_silently_is_retried_for_get_only() {
    let puma = Scripted::new(vec![Say::Keep(ok("a")), Say::Close(vec![]), Say::Keep(ok("b")), Say::Close(vec![]), Say::Keep(ok("c"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.get("/1").await.unwrap().1, "a");
    assert_eq!(way.get("/2").await.unwrap().1, "b", "sent again on a fresh connection");
    assert_eq!(way.post("/3", b"x").await.unwrap_err(), Refusal::UpstreamReset, "may have been executed");
    assert_eq!(puma.connections(), [0, 0, 1, 1]);
    assert!(way.all_slots_free().await);
}

#[tokio::test]
async fn a_fresh_connection_that_ends_silently_is_never_retried() {
    let puma = Scripted::new(vec![Say::Close(vec![]), Say::Keep(ok("b"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.get("/1").await.unwrap_err(), Refusal::UpstreamReset);
    assert_eq!(puma.connections(), [0]);
}

#[tokio::test]
async fn a_request_that_puma_never_read_is_sent_again_whatever_its_method() {
    let puma = Scripted::new(vec![Say::Unread, Say::Keep(ok("b"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.post("/1", b"x").await.unwrap().1, "b");
    assert_eq!(puma.connections(), [1]);
}

#[tokio::test]
async fn a_long_body_arrives_whole_and_an_early_answer_is_taken() {
    let body = vec![b'x'; 3_000_000];
    let puma = Scripted::new(vec![Say::Keep(ok("a")), Say::Keep(ok("b"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.post("/1", &body).await.unwrap().1, "a");
    assert!(puma.request(0).ends_with(std::str::from_utf8(&body).unwrap()));

    let puma = Scripted::new(vec![Say::Early(b"HTTP/1.1 413 Too Large\r\nContent-Length: 1\r\n\r\nn".to_vec()), Say::Keep(ok("c"))]);
    let way = Way::new(kept(&puma.address));
    assert_eq!(way.post("/2", &body).await.unwrap(), (413, Bytes::from("n")));
    assert_eq!(way.get("/3").await.unwrap().1, "c");
    assert_eq!(puma.connections(), [1], "the first connection is gone");
}

#[tokio::test]
async fn a_slot_is_held_until_the_last_byte_and_not_longer() {
    let (first, last) = (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc".to_vec(), b"def".to_vec());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("puma.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (go, went) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        stream.write_all(&first).await.unwrap();
        went.await.unwrap();
        stream.write_all(&last).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
    });
    let way = Way::new(kept(&Address::Unix(path)));
    let mut answer = way.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n", b"").await.unwrap().into_body();
    assert_eq!(http_body::Body::size_hint(&answer).exact(), Some(6));
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    assert_eq!(way.slots.figures().in_flight, 1);
    go.send(()).unwrap();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "def");
    assert_eq!(way.slots.figures().in_flight, 0, "free although the end was not polled");
    assert!(answer.frame().await.is_none());
    assert_eq!(way.puma.idle_connections(), 1);
}

#[tokio::test]
async fn a_request_that_timed_out_keeps_its_thread_until_puma_lets_go() {
    let puma = Scripted::new(vec![Say::Hang(vec![])]);
    let way = Way::new(Config { response_timeout: Deadline::millis(200), ..config(puma.address.clone()) });
    assert_eq!(way.get("/slow").await.unwrap_err(), Refusal::UpstreamTimeout);
    let figures = way.slots.figures();
    assert_eq!((figures.in_flight, figures.stuck), (1, 1));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("puma.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let way = Way::new(Config { response_timeout: Deadline::millis(200), ..config(Address::Unix(path)) });
    let (answer, accepted) = tokio::join!(way.get("/slow"), listener.accept());
    assert_eq!(answer.unwrap_err(), Refusal::UpstreamTimeout);
    assert_eq!(way.slots.figures().stuck, 1);
    drop(accepted);
    assert!(way.all_slots_free().await);
    assert_eq!(way.slots.figures().stuck, 0);
}

#[tokio::test]
async fn an_abandoned_request_keeps_its_thread_until_puma_has_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("puma.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let way = Way::new(config(Address::Unix(path)));
    let asking = tokio::spawn({
        let way = way.clone();
        async move { way.get("/slow").await }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    read_request(&mut stream).await.unwrap();
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(way.slots.figures().in_flight, 1);
    stream.write_all(&ok("late")).await.unwrap();
    drop(stream);
    assert!(way.all_slots_free().await);
}

#[tokio::test]
async fn early_hints_carry_links_and_nothing_else() {
    let said = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nSet-Cookie: a=b\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let puma = Scripted::say(said);
    let way = Way::new(config(puma.address.clone()));
    let mut complete = Complete::for_test(Content::None);
    complete.admit(way.slots.try_take_of(0).unwrap());
    let mut request = Request::new(Canonical::forged("GET / HTTP/1.1\r\nHost: app\r\n\r\n", complete));
    let arrival = arrival();
    let notes = Arc::clone(&arrival.notes);
    request.extensions_mut().insert(arrival);
    let answer = way.puma.clone().call(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let hints = notes.take_hints();
    assert_eq!(hints.len(), 1);
    assert_eq!((hints[0].len(), hints[0].get("link").unwrap().as_bytes()), (1, &b"</a.css>; rel=preload"[..]));
}

#[tokio::test]
async fn a_switched_connection_is_handed_over_once_and_takes_no_thread() {
    let puma = Scripted::new(vec![Say::Hang(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst".to_vec(),
    )]);
    let way = Way::new(config(puma.address.clone()));
    let answer = way.ask("GET /cable HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"").await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("upgrade").unwrap()), (101, &http::HeaderValue::from_static("websocket")));
    assert!(!puma.request(0).contains("close"));
    let end = answer.extensions().get::<FarEnd>().unwrap();
    let tunnel = end.take().unwrap();
    assert_eq!(tunnel.early, "first");
    assert!(end.take().is_none());
    assert_eq!((way.slots.figures().in_flight, way.puma.upgrades()), (0, 1));
    drop(tunnel);
    assert_eq!(way.puma.upgrades(), 0);
}

#[tokio::test]
async fn what_belongs_to_the_connection_stays_behind() {
    let said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: b\r\nTE: t\r\nTrailer: x\r\n\
        Upgrade: h2c\r\nX-Sendfile: /etc/passwd\r\nX-Accel-Redirect: /a\r\nX-Accel-Buffering: no\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX-Kept: y\r\n\r\nok";
    let way = Way::new(config(Scripted::say(said).address.clone()));
    let answer = way.get("/").await;
    assert_eq!(answer.unwrap_err(), Refusal::UpstreamRefused, "the socket is gone with its owner");
    let puma = Scripted::say(said);
    let way = Way::new(config(puma.address.clone()));
    let answer = way.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n", b"").await.unwrap();
    let mut names: Vec<_> = answer.headers().iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["set-cookie", "set-cookie", "x-kept"]);
    assert!(answer.body().is_stream(), "X-Accel-Buffering: no");
}

#[tokio::test]
async fn a_head_answer_has_a_length_and_no_body() {
    let puma = Scripted::new(vec![Say::Keep(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n".to_vec()), Say::Keep(ok("next"))]);
    let way = Way::new(kept(&puma.address));
    let answer = way.ask("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n", b"").await.unwrap();
    assert_eq!(answer.headers().get("content-length").unwrap(), "500");
    assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(way.get("/").await.unwrap().1, "next");
    assert_eq!(puma.connections(), [0, 0]);
}

#[tokio::test]
async fn a_post_on_a_connection_that_puma_has_closed_is_sent_again_on_a_fresh_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("puma.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let way = Way::new(kept(&Address::Unix(path)));
    for said in ["one", "two", "three"] {
        let (answer, ()) = tokio::join!(way.post("/", b"x"), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await.unwrap();
            stream.write_all(&ok(said)).await.unwrap();
        });
        assert_eq!(answer.unwrap().1, said);
        assert_eq!(way.puma.idle_connections(), 1);
    }
}

#[tokio::test]
async fn an_ill_application_gets_no_requests_until_it_is_well() {
    let ill = || Say::Close(b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n".to_vec());
    let puma = Scripted::new(vec![ill(), ill(), ill(), Say::Close(ok("up")), Say::Close(ok("page"))]);
    let health = Health { path: Some("/up".into()), interval: Deadline::millis(20), unhealthy: 2, ..Health::default() };
    let way = Way::new(Config { health, ..config(puma.address.clone()) });
    let until = async |away| {
        while way.slots.figures().away != away {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), until(true)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), until(false)).await.unwrap();
    assert!(puma.request(0).starts_with("GET /up HTTP/1.1\r\nHost: localhost\r\n"));
    assert!(puma.connections().len() >= 4);
}
