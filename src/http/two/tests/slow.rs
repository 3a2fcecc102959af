//! Clients that are slow in taking whole answers, and one that takes none.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;

/// Asks for 32 answers of 60,000 bytes, with windows for all of them: each is handed over at once and waits for the socket.
async fn ask(timeouts: Timeouts) -> Bench {
    let mut bench = Bench::two(timeouts, |_| async {
        let (sender, script) = Script::open(Some(60_000));
        sender.send(Ok(Bytes::from(vec![7; 60_000]))).unwrap();
        Response::new(script)
    });
    bench.send(hello(&[0, 4, 0, 16, 0, 0])).await;
    bench.send(frame(WINDOW_UPDATE, 0, 0, &10_000_000u32.to_be_bytes())).await;
    for n in 0..ANSWERS {
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET)).await;
    }
    bench
}

fn ended(said: &[u8]) -> usize {
    frames(said).iter().filter(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0).count()
}

#[tokio::test]
async fn whole_answers_that_wait_for_their_client_keep_its_connection() {
    let mut bench = ask(quick()).await;
    let (mut said, mut piece, start) = (Vec::new(), vec![0; 40_000], tokio::time::Instant::now());
    while ended(&said) < ANSWERS as usize {
        let n = bench.client.read(&mut piece).await.unwrap();
        assert!(n > 0, "the connection ended after {:?}, {} answers and {} bytes", start.elapsed(), ended(&said), said.len());
        said.extend(&piece[..n]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() > Duration::from_millis(700), "longer than the idle time and the stall");
}

/// h2 has each of twelve answers whole, and of the last one, which comes in its turn after a piece of each, a part.
#[tokio::test]
async fn an_answer_behind_others_that_the_socket_is_at_does_not_stand_still() {
    let asked = AtomicU32::new(0);
    let mut bench = Bench::two(quick(), move |_| {
        let length = if asked.fetch_add(1, Relaxed) < 12 { 60_000 } else { 200_000 };
        async move {
            let (sender, script) = Script::open(Some(length));
            sender.send(Ok(Bytes::from(vec![7; length as usize]))).unwrap();
            Response::new(script)
        }
    });
    bench.send(hello(&[0, 4, 0, 16, 0, 0])).await;
    bench.send(frame(WINDOW_UPDATE, 0, 0, &10_000_000u32.to_be_bytes())).await;
    for n in 0..=12 {
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET)).await;
    }
    let (mut said, mut piece) = (Vec::new(), vec![0; 8_000]);
    while ended(&said) <= 12 {
        let n = bench.client.read(&mut piece).await.unwrap();
        said.extend(&piece[..n]);
        let resets = frames(&said).iter().filter(|(kind, ..)| *kind == RST_STREAM).count();
        assert!(n > 0 && resets == 0, "{resets} answers were reset after {} bytes", said.len());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Three quarters of a unix socket's buffer have to be read before the kernel calls it writable.
#[tokio::test]
async fn a_client_that_takes_little_at_a_time_is_not_let_go_because_the_buffers_are_full() {
    let mut bench = ask(quick()).await;
    let (mut read, mut piece) = (0, vec![0; 8_000]);
    for _ in 0..70 {
        let n = bench.client.read(&mut piece).await.unwrap();
        assert!(n > 0, "it was let go after {read} bytes");
        read += n;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    while read < 60_000 * ANSWERS as usize {
        let n = bench.client.read(&mut piece).await.unwrap();
        assert!(n > 0, "it was let go after {read} bytes");
        read += n;
    }
}

#[tokio::test]
async fn who_takes_nothing_of_whole_answers_is_let_go_at_the_stall() {
    let start = tokio::time::Instant::now();
    let mut bench = ask(Timeouts { idle: Deadline::seconds(60), ..quick() }).await;
    bench.ended().await;
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_drips_is_let_go_by_its_rate() {
    let start = tokio::time::Instant::now();
    let mut bench = ask(quick()).await;
    let (mut read, mut piece) = (0, [0; 20]);
    while !bench.task.is_finished() {
        assert!(start.elapsed() < WAIT, "200 B/s live on");
        read += bench.client.read(&mut piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(read > 0 && read <= 2_000, "{read}");
}

/// Four answers of 1,000 bytes, which a slow client takes two seconds for, are in the buffer of the socket.
async fn answered() -> (Bench, Vec<u8>) {
    let mut bench = Bench::two(quick(), |_| async {
        let (sender, script) = Script::open(Some(1000));
        sender.send(Ok(Bytes::from(vec![7; 1000]))).unwrap();
        Response::new(script)
    });
    bench.send(hello(&[])).await;
    for n in 0..4 {
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET)).await;
    }
    let (mut said, end) = (Vec::new(), tokio::time::Instant::now() + WAIT);
    while goaways(&said).is_empty() {
        assert!(tokio::time::Instant::now() < end, "an idle connection is told to leave");
        bench.client.read_buf(&mut said).await.unwrap();
    }
    assert_eq!(ended(&said), 4);
    (bench, said)
}

#[tokio::test]
async fn an_idle_connection_stays_for_as_long_as_a_slow_client_may_take_its_answers() {
    let start = tokio::time::Instant::now();
    let (mut bench, _) = answered().await;
    bench.ended().await;
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_idle_connection_ends_when_its_client_says_that_it_has_all() {
    let start = tokio::time::Instant::now();
    let (mut bench, said) = answered().await;
    let ping = frames(&said).into_iter().find(|(kind, flags, ..)| *kind == PING && *flags == 0).unwrap().3;
    bench.send(frame(PING, 1, 0, &ping)).await;
    bench.ended().await;
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

const ANSWERS: u32 = 32;
