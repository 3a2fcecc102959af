//! Deadlines, and clients that do not take their answer.

use super::*;

#[tokio::test]
async fn a_slow_head_is_refused_and_silence_is_not_answered() {
    let mut bench = Bench::one(quick(), echo);
    bench.send("GET / HTTP/1.1\r\nHo").await;
    assert!(bench.read_all_text().await.starts_with("HTTP/1.1 408"));
    let mut silent = Bench::one(quick(), echo);
    assert_eq!(silent.read_all().await, b"");
    let mut drip = Bench::one(quick(), echo);
    for byte in b"GET / HTTP/1.1\r\nX-Header: 0123456789012345678901234567890123456789" {
        if drip.client.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(drip.read_all_text().await.starts_with("HTTP/1.1 408"), "a byte does not restart the time");
    let start = std::time::Instant::now();
    while drip.client.write_all(b"x").await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(2), "it goes on dripping into the lingering close");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_idle_connection_ends_at_its_own_deadline() {
    let mut bench = Bench::one(quick(), echo);
    bench.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    bench.read_to("/x").await;
    assert_eq!(bench.read_all().await, b"");
    bench.ended().await;
}

#[tokio::test]
async fn a_client_that_never_closes_is_not_waited_for() {
    let mut bench = Bench::one(quick(), echo);
    bench.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    bench.read_all().await;
    bench.ended().await;
}

#[tokio::test]
async fn a_request_that_waits_is_given_up_with_its_client_and_an_admitted_one_is_not() {
    let (admit, told) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let (keep, tell) = (Arc::clone(&admit), Arc::clone(&told));
    let app = move |request: Request<Received>| {
        let (finish, answer) = oneshot::channel::<()>();
        *keep.lock().unwrap() = Some(finish);
        let notes = Arc::clone(&request.extensions().get::<Arrival>().unwrap().notes);
        *tell.lock().unwrap() = Some(Arc::clone(&notes));
        if request.uri().path() == "/admitted" {
            notes.mark(Moment::Admitted);
        }
        async move {
            answer.await.unwrap();
            page("late")
        }
    };
    let mut bench = Bench::one(slow(), app.clone());
    bench.send("GET /queued HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    bench.client.shutdown().await.unwrap();
    bench.ended().await;
    assert!(admit.lock().unwrap().take().unwrap().send(()).is_err(), "nobody waits for the answer any more");

    let mut bench = Bench::one(slow(), app);
    bench.send("GET /admitted HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    bench.client.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    admit.lock().unwrap().take().unwrap().send(()).unwrap();
    assert!(bench.read_all_text().await.ends_with("late"));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_let_go() {
    let ends = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&ends);
    let mut bench = Bench::one(quick(), move |_| {
        let (sender, script) = Script::open(Some(4_000_000));
        sender.send(Ok(Bytes::from(vec![b'x'; 4_000_000]))).unwrap();
        *seen.lock().unwrap() = Some(Arc::clone(&script.ends));
        async { Response::new(script) }
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    bench.ended().await;
    assert_eq!(*ends.lock().unwrap().take().unwrap().lock().unwrap(), [End::SlowRead]);
}

#[tokio::test]
async fn a_client_that_reads_steadily_is_not_let_go_however_long_it_takes() {
    let mut bench = Bench::one(quick(), |_| async {
        let (sender, script) = Script::open(Some(4_000_000));
        sender.send(Ok(Bytes::from(vec![b'x'; 4_000_000]))).unwrap();
        Response::new(script)
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let (mut read, mut piece) = (0, vec![0; 100_000]);
    loop {
        let n = bench.client.read(&mut piece).await.unwrap();
        if n == 0 {
            break;
        }
        read += n;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(read > 4_000_000, "{read}");
}

/// Three quarters of a unix socket's buffer have to be read before the kernel calls it writable, a third of a TCP socket's.
#[tokio::test]
async fn a_client_that_reads_steadily_is_not_let_go_because_the_buffers_are_full() {
    let mut bench = Bench::one(quick(), |_| async {
        let (sender, script) = Script::open(Some(2_000_000));
        (0..40).for_each(|_| sender.send(Ok(Bytes::from(vec![b'x'; 50_000]))).unwrap());
        Response::new(script)
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let (mut read, mut piece) = (0, vec![0; 8_000]);
    for _ in 0..100 {
        let n = bench.client.read(&mut piece).await.unwrap();
        assert!(n > 0, "it was let go after {read} bytes");
        read += n;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    read += bench.read_all().await.len();
    assert!(read > 2_000_000, "{read}");
}

#[tokio::test]
async fn a_stream_whose_client_waits_with_puma_is_not_let_go() {
    let (later, script) = Script::open(None);
    let script = Mutex::new(Some(script));
    let mut bench = Bench::one(quick(), move |_| {
        let script = script.lock().unwrap().take().unwrap();
        async { Response::new(script) }
    });
    bench.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    later.send(Ok(Bytes::from_static(b"data: 1\n\n"))).unwrap();
    bench.read_to("data: 1\n\n").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    later.send(Ok(Bytes::from_static(b"data: 2\n\n"))).unwrap();
    bench.read_to("data: 2\n\n").await;
    bench.client.shutdown().await.unwrap();
    bench.ended().await;
    assert!(later.is_closed(), "a client that leaves a stream frees it");
}

/// Sends an answer through the relay to a client that stands still for a while, and then reads on.
async fn relayed(pieces: usize, is_old: bool, length: Option<u64>) -> (Vec<u8>, Sent) {
    let dir = tempfile::tempdir().unwrap();
    let config = spill::Config { dir: dir.path().to_owned(), client_share: 1.0, ..spill::Config::default() };
    let store = Store::start(&config).unwrap();
    // Other bodies crowd the memory, so what the client leaves is taken back at once.
    let mut others = store.memory.open();
    assert!(others.grow(store.memory.limit() / 100) && store.memory.is_crowded());
    let (sender, script) = Script::open(length);
    (0..pieces).for_each(|n| sender.send(Ok(Bytes::from(vec![n as u8; 50_000]))).unwrap());
    drop(sender);
    let mut script = Some(script);
    let puma = tower::service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Refusal>(Response::new(script.take().unwrap()))));
    let response = RelayLayer::new(Arc::clone(&store), config).layer(puma).call(Request::new(())).await.unwrap();
    let (mut client, far) = UnixStream::pair().unwrap();
    let mut wire = Wire::new(Stream::of_unix(far), Sweep::new().enrol(u64::MAX));
    let server = tokio::spawn(async move {
        let shape = Shape { to_head: false, is_old, keep: true, at: std::time::SystemTime::UNIX_EPOCH };
        let response = response.map(Plain);
        reply::send(&mut wire, Outgoing::default(), response, shape, &Rates::default(), &slow()).await
    });
    let mut all = Vec::new();
    let mut few = [0; 3000];
    for wait in [1300, 1300, 0, 0, 1300] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let n = client.read(&mut few).await.unwrap();
        all.extend_from_slice(&few[..n]);
    }
    assert!(store.disk.used() > 0, "what the client has not taken waits in a file");
    client.read_to_end(&mut all).await.unwrap();
    let sent = server.await.unwrap();
    assert_eq!(store.disk.used(), 0);
    (all, sent)
}

/// A relayed body without the layers that note its end.
struct Plain(Relayed<Script>);

impl Body for Plain {
    type Data = Bytes;
    type Error = Refusal;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Absorb for Plain {
    fn poll_absorb(mut self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes) {
        Pin::new(&mut self.0).poll_absorb(cx, unsent);
    }
}

impl Settle for Plain {
    fn settle(self: Pin<&mut Self>, _: End) {}
}

fn expected(pieces: usize) -> Vec<u8> {
    (0..pieces).flat_map(|n| vec![n as u8; 50_000]).collect()
}

#[tokio::test]
async fn what_a_client_left_standing_arrives_whole_and_in_order() {
    let (with_length, in_chunks, to_the_end) =
        tokio::join!(relayed(60, false, Some(3_000_000)), relayed(60, false, None), relayed(60, true, None));
    let body = |all: &[u8]| all[all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4..].to_vec();
    assert_eq!((body(&with_length.0) == expected(60), with_length.1), (true, Sent::Kept));
    assert_eq!((body(&to_the_end.0) == expected(60), to_the_end.1), (true, Sent::Last));
    let (mut chunked, mut rest, mut data) = (Chunked::new(), &body(&in_chunks.0)[..], Vec::new());
    loop {
        let piece = chunked.advance(rest, &Limits::default()).unwrap();
        data.extend_from_slice(&rest[piece.data.clone()]);
        rest = &rest[piece.consumed..];
        if piece.done {
            break;
        }
        assert!(piece.consumed > 0, "it ends too early");
    }
    assert_eq!((data == expected(60), rest.len(), in_chunks.1), (true, 0, Sent::Kept));
}
