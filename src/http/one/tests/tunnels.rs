//! What follows a 101.

use super::*;

fn switching(far: UnixStream, early: &'static [u8]) -> Response<Script> {
    let mut response = Response::new(Script::of(&[], true));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    let far = Far { stream: Box::pin(far), early: Bytes::from_static(early), place: Box::new(()) };
    response.extensions_mut().insert(FarEnd::new(far));
    response
}

fn tunnelling(timeouts: Timeouts) -> (Bench, UnixStream) {
    let (puma, far) = UnixStream::pair().unwrap();
    let far = Mutex::new(Some(far));
    let bench = Bench::one(timeouts, move |_| {
        let far = far.lock().unwrap().take().unwrap();
        async move { switching(far, b"early") }
    });
    (bench, puma)
}

const HANDSHAKE: &str = "GET /cable HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn bytes_behind_a_handshake_reach_puma_and_those_behind_its_101_the_client() {
    let (mut bench, mut puma) = tunnelling(slow());
    bench.send(format!("{HANDSHAKE}ahead")).await;
    let mut five = [0; 5];
    puma.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"ahead");
    let all = bench.read_to("early").await;
    assert_eq!(all, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nearly");
    puma.write_all(b"pong").await.unwrap();
    bench.read_to("pong").await;
    puma.shutdown().await.unwrap();
    assert_eq!(bench.read_all().await, b"", "one side may close before the other");
    bench.send("last").await;
    bench.client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    puma.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"last");
    bench.ended().await;
}

#[tokio::test]
async fn a_silent_tunnel_ends_and_so_does_one_when_palisade_drains() {
    let (mut bench, puma) = tunnelling(quick());
    bench.send(HANDSHAKE).await;
    bench.ended().await;
    drop(puma);
}

#[tokio::test]
async fn a_drain_says_goodbye_between_two_frames_and_waits_for_the_clients() {
    // "early" is the begin of an unmasked frame of 97 bytes; 94 are to come, and the next frame must not be begun.
    let (mut bench, mut puma) = tunnelling(slow());
    bench.send(HANDSHAKE).await;
    bench.read_to("early").await;
    bench.sites.drain();
    bench.sweep.wake_all();
    tokio::time::sleep(Duration::from_millis(50)).await;
    puma.write_all(&[b'x'; 94]).await.unwrap();
    puma.write_all(b"\x81\x04next").await.unwrap();
    let mut rest = vec![0; 98];
    bench.client.read_exact(&mut rest).await.unwrap();
    assert_eq!(rest, [&[b'x'; 94][..], b"\x88\x02\x03\xf4"].concat());
    let goodbye = b"\x88\x82\x01\x02\x03\x04\x02\xf6";
    bench.send(goodbye).await;
    assert_eq!(bench.read_all().await, b"", "the server closes first");
    bench.ended().await;
    let mut told = Vec::new();
    puma.read_to_end(&mut told).await.unwrap_or_default();
    assert_eq!(told, goodbye);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever_for_the_end_of_a_frame() {
    let (mut bench, _puma) = tunnelling(slow());
    bench.send(HANDSHAKE).await;
    bench.read_to("early").await;
    bench.sites.drain();
    bench.sweep.wake_all();
    bench.ended().await;
}
