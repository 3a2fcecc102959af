//! Extended CONNECT (RFC 8441).

use super::*;

fn extended(protocol: &str) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "https"),
        (":path", "/cable?x=1"),
        (":authority", "a"),
        ("sec-websocket-version", "13"),
    ];
    frame(HEADERS, END_HEADERS, 1, &fields.map(|(name, value)| literal(name, value)).concat())
}

#[tokio::test]
async fn a_websocket_over_http_2_reaches_puma_as_an_upgrade_and_its_101_the_client_as_200() {
    let (mut puma, far) = UnixStream::pair().unwrap();
    let far = Mutex::new(Some(far));
    let marked = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&marked);
    let mut bench = Bench::two(Timeouts::default(), move |request: Request<Received>| {
        *seen.lock().unwrap() = request.extensions().get::<Extended>().is_some() && !request.body().is_declared();
        let far = far.lock().unwrap().take().unwrap();
        async move {
            let mut response = Response::new(Script::of(&[], true));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
            response.headers_mut().insert("sec-websocket-accept", HeaderValue::from_static("x"));
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("actioncable-v1-json"));
            let far = Far { stream: Box::pin(far), early: Bytes::from_static(b"welcome"), place: Box::new(()) };
            response.extensions_mut().insert(FarEnd::new(far));
            response
        }
    });
    bench.send([hello(&[]), extended("websocket")].concat()).await;
    let mut said = Vec::new();
    while !said.windows(7).any(|part| part == b"welcome") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let settings = frames(&said).into_iter().find(|(kind, flags, ..)| *kind == SETTINGS && *flags == 0).unwrap().3;
    assert!(settings.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "the client may use extended CONNECT");
    let head = frames(&said).into_iter().find(|(kind, ..)| *kind == HEADERS).unwrap();
    assert_eq!((head.1 & END_STREAM, head.3[0]), (0, 0x88), ":status 200, and the stream stays open");
    assert_eq!(bench.asked(), ["GET /cable?x=1"]);
    assert!(*marked.lock().unwrap());

    bench.send(frame(DATA, 0, 1, b"ping")).await;
    let mut four = [0; 4];
    puma.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    puma.write_all(b"pong").await.unwrap();
    while !said.windows(4).any(|part| part == b"pong") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    bench.send(frame(DATA, END_STREAM, 1, b"")).await;
    assert_eq!(puma.read(&mut four).await.unwrap(), 0);
    drop(puma);
    while !frames(&said).iter().any(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_drain_says_goodbye_to_a_websocket_over_http_2() {
    let (mut puma, far) = UnixStream::pair().unwrap();
    let far = Mutex::new(Some(far));
    let mut bench = Bench::two(Timeouts::default(), move |_: Request<Received>| {
        let far = far.lock().unwrap().take().unwrap();
        async move {
            let mut response = Response::new(Script::of(&[], true));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let far = Far { stream: Box::pin(far), early: Bytes::from_static(b"\x81\x02hi"), place: Box::new(()) };
            response.extensions_mut().insert(FarEnd::new(far));
            response
        }
    });
    bench.send([hello(&[]), extended("websocket")].concat()).await;
    let mut said = Vec::new();
    while !said.windows(4).any(|part| part == b"\x81\x02hi") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    bench.sites.drain();
    bench.sweep.wake_all();
    while !said.windows(4).any(|part| part == b"\x88\x02\x03\xf4") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let goodbye = b"\x88\x82\x01\x02\x03\x04\x02\xf6";
    bench.send(frame(DATA, 0, 1, goodbye)).await;
    while !frames(&said).iter().any(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let mut told = Vec::new();
    puma.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, goodbye);
}

#[tokio::test]
async fn an_extended_connect_that_puma_does_not_switch_is_no_success() {
    for (status, expected) in [(StatusCode::OK, &b"502"[..]), (StatusCode::NOT_FOUND, &b"404"[..])] {
        let mut bench = Bench::two(Timeouts::default(), move |_| async move {
            let mut response = page("a page");
            *response.status_mut() = status;
            response
        });
        let (_, spare) = UnixStream::pair().unwrap();
        let stream = std::mem::replace(&mut bench.client, spare);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        // The client may send :protocol only once the server's SETTINGS are here.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let request = Request::connect("http://a/cable").extension(hyper::ext::Protocol::from_static("websocket"));
        let request = request.header("sec-websocket-version", "13").body(Full::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status().as_str().as_bytes(), expected);
        assert_eq!(bench.asked(), ["GET /cable"]);
    }
}

#[tokio::test]
async fn other_connects_stay_what_they_are() {
    let mut bench = Bench::two(Timeouts::default(), |request: Request<Received>| async move {
        assert!(request.extensions().get::<Extended>().is_none());
        assert!(request.extensions().get::<Arrival>().is_some());
        let mut response = page("no");
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        response
    });
    bench.send([hello(&[]), extended("connect-udp")].concat()).await;
    let mut said = Vec::new();
    while !frames(&said).iter().any(|(kind, ..)| *kind == HEADERS) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    assert_eq!(bench.asked(), ["CONNECT /cable?x=1"]);
}
