//! Floods, resets and streams without room (RFC 9113 §10.5).

use super::*;

/// Sends as much as the server takes, then reads what it says to its end.
async fn attack(bench: &mut Bench, bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let (mut read, mut write) = bench.client.split();
    let talk = async {
        let write = async { write.write_all(bytes).await.unwrap_or_default() };
        tokio::join!(write, async { read.read_to_end(&mut said).await.unwrap_or_default() });
    };
    assert!(tokio::time::timeout(WAIT, talk).await.is_ok(), "the connection does not end");
    bench.ended().await;
    said
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_and_reaches_nobody() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..2000u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn rapid_reset_in_small_doses_ends_the_same_way() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    bench.send(hello(&[])).await;
    for n in 0..300u32 {
        let pair = [frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET), frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes())];
        if bench.client.write_all(&pair.concat()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(goaways(&bench.read_all().await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn streams_that_the_client_makes_us_reset_reach_nobody() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..2000u32 {
        bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, GET));
        // RFC 9113 §6.9.1: a window above 2^31-1 is an error of the stream.
        bytes.extend(frame(WINDOW_UPDATE, 0, 2 * n + 1, &0x7fff_ffff_u32.to_be_bytes()));
    }
    assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn frames_that_cost_nothing_are_counted() {
    let open = frame(HEADERS, END_HEADERS, 1, GET);
    let cases = [
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("unknown", frame(0xfa, 0, 1, &[0; 3])),
        ("window update", frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("empty data", frame(DATA, 0, 1, &[])),
    ];
    for (name, flood) in cases {
        // Nobody reads the body, so that the stream stays open.
        let mut bench = Bench::two(Timeouts::default(), |request: Request<Received>| async move {
            tokio::time::sleep(WAIT).await;
            drop(request);
            page("late")
        });
        let bytes = [hello(&[]), open.clone(), flood.repeat(6000)].concat();
        assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM], "{name}");
        assert!(bench.asked().len() <= 1);
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    for piece in [&b""[..], &b"\x90"[..], &[0x90; 1000][..]] {
        let mut bench = Bench::two(Timeouts::default(), hello_world);
        let mut bytes = [hello(&[]), frame(HEADERS, 0, 1, GET)].concat();
        bytes.extend(frame(CONTINUATION, 0, 1, piece).repeat(5000));
        assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM], "{} bytes each", piece.len());
        assert!(bench.asked().is_empty());
    }
}

#[tokio::test]
async fn fields_that_unfold_to_megabytes_reach_nobody() {
    let mut bench = Bench::two(quick(), hello_world);
    // A field of 4000 bytes enters the table, and is named 10,000 times by one byte: 40 MB.
    let mut block = GET.to_vec();
    block.extend(b"\x40\x01b\x7f\xa1\x1e");
    block.extend([b'x'; 4000]);
    block.extend([0xbe; 10_000]);
    let bytes = [hello(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)].concat();
    let said = attack(&mut bench, &bytes).await;
    assert!(bench.asked().is_empty());
    let answered = frames(&said).iter().any(|(kind, _, stream, _)| *stream == 1 && matches!(*kind, HEADERS | RST_STREAM));
    assert!(answered || !goaways(&said).is_empty(), "{:?}", frames(&said));
}

#[tokio::test]
async fn a_client_that_gives_no_room_for_its_answers_is_let_go() {
    for window in [0u32, 1] {
        let mut bench = Bench::two(quick(), |_| async { Response::new(Script::of(&["some text", "and more"], true)) });
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        let mut bytes = hello(&settings);
        for n in 0..50u32 {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        }
        let mut said = Vec::new();
        bench.send(bytes).await;
        // Answering PINGs does not save it.
        let end = tokio::time::Instant::now() + WAIT;
        loop {
            assert!(tokio::time::Instant::now() < end, "window {window}: it is still there");
            let wrote = bench.client.write_all(&frame(PING, 1, 0, &[0; 8])).await;
            let read = tokio::time::timeout(Duration::from_millis(400), bench.client.read_buf(&mut said)).await;
            if wrote.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
        assert_eq!(bench.asked().len(), 50);
    }
}

#[tokio::test]
async fn an_idle_connection_ends_with_goaway_whatever_it_pings() {
    let mut bench = Bench::two(quick(), hello_world);
    bench.send(hello(&[])).await;
    bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await;
    let mut said = Vec::new();
    let start = tokio::time::Instant::now();
    while goaways(&said).is_empty() {
        assert!(start.elapsed() < WAIT, "PING keeps it open");
        bench.send(frame(PING, 0, 0, &[1; 8])).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        bench.client.try_read_buf(&mut said).unwrap_or_default();
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(goaways(&said)[0], 0);
}

#[tokio::test]
async fn who_resets_without_end_is_read_in_pauses_and_an_honest_client_goes_on_after_one() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..18u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
        if n % 9 == 8 {
            bench.send(std::mem::take(&mut bytes)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let start = tokio::time::Instant::now();
    bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 101, GET)).await;
    let mut said = Vec::new();
    while !said.windows(5).any(|part| part == b"hello") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    assert!((Duration::from_millis(50)..WAIT).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!((bench.asked(), goaways(&said)), (vec!["GET /".to_owned()], Vec::new()));
}
