//! How much a thread has to do at once: whether what is written waits for the others.
//!
//! What is written in one go wakes the far side once for all of it, and not once for each; but one request alone would only
//! wait for nobody. `docs/decisions/0010-writes-in-one-go.md`.

use std::{
    cell::Cell,
    future::poll_fn,
    task::{Context, Poll},
};

/// Lets the other connections go first that have something to do in this turn of the loop, where there are some: CPU per request
/// beside nginx 1.32 → 1.15, measured with 64 connections.
pub async fn others_first() {
    if has_company() {
        let mut has_waited = false;
        poll_fn(|cx| poll_next_round(cx, &mut has_waited)).await;
    }
}

/// Ready when everything has run that was about to run. tokio's `yield_now` would also look at the sockets before, and what has come
/// there since would go first, too.
fn poll_next_round(cx: &Context<'_>, has_waited: &mut bool) -> Poll<()> {
    if std::mem::replace(has_waited, true) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// This thread has done all there was to do, and goes to sleep.
pub fn goes_to_sleep() {
    LATELY.set(AWAKE.replace(0));
}

/// Whether more than one came here since the thread woke up, or the time before.
fn has_company() -> bool {
    AWAKE.set(AWAKE.get().saturating_add(1));
    AWAKE.get().max(LATELY.get()) > 1
}

thread_local! {
    static AWAKE: Cell<u32> = const { Cell::new(0) };
    static LATELY: Cell<u32> = const { Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    };

    use tokio::{io::AsyncReadExt, net::UnixStream};

    use super::*;

    #[test]
    fn one_alone_waits_for_nobody_and_many_go_together() {
        static SLEPT: AtomicU32 = AtomicU32::new(0);
        let asleep = || {
            SLEPT.fetch_add(1, Relaxed);
            goes_to_sleep();
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().on_thread_park(asleep).build().unwrap();
        let alone: Vec<bool> = runtime.block_on(async {
            let mut seen = Vec::new();
            for _ in 0..4 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                seen.push(has_company());
            }
            seen
        });
        assert!(SLEPT.load(Relaxed) >= 4);
        assert_eq!(alone, [false; 4]);
        assert_eq!([has_company(), has_company()], [true; 2], "two since the last sleep");
        goes_to_sleep();
        assert!(has_company(), "there were several a moment ago");
        goes_to_sleep();
        assert!(!has_company());
    }

    #[test]
    fn a_pause_is_for_those_of_this_turn_and_not_for_what_comes_during_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (tell, seen) = mpsc::channel();
        let [reads, writes, hurries] = [tell.clone(), tell.clone(), tell];
        runtime.block_on(async {
            let (mut near, far) = UnixStream::pair().unwrap();
            far.writable().await.unwrap();
            let reader = tokio::spawn(async move {
                near.read_u8().await.unwrap();
                reads.send("what comes during it").unwrap();
            });
            tokio::task::yield_now().await;
            tokio::spawn(async move {
                has_company();
                far.try_write(b"x").unwrap();
                others_first().await;
                writes.send("who pauses").unwrap();
            });
            tokio::spawn(async move { hurries.send("of this turn").unwrap() });
            reader.await.unwrap();
        });
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["of this turn", "who pauses", "what comes during it"]);
    }
}
