//! An exchange under way, in memory that the next one on this thread uses again: its state is more than a KiB.
//!
//! Threat: exhaustion; only so many pieces of memory are kept, and only those whose exchange has come to its end.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use tokio_util::sync::ReusableBoxFuture;

use crate::{refusal::Refusal, upstream::Answer};

type Outcome = Result<Response<Answer>, Refusal>;

/// The future of [`Puma`](crate::upstream::Puma).
#[derive(Debug)]
pub struct UnderWay(Option<ReusableBoxFuture<'static, Outcome>>);

impl UnderWay {
    pub(super) fn new(exchange: impl Future<Output = Outcome> + Send + 'static) -> Self {
        UnderWay(Some(match ENDED.with_borrow_mut(Vec::pop) {
            Some(mut place) => {
                place.set(exchange);
                place
            }
            None => ReusableBoxFuture::new(exchange),
        }))
    }
}

impl Future for UnderWay {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(exchange) = &mut self.0 else { return Poll::Pending };
        let outcome = ready!(exchange.poll(cx));
        ENDED.with_borrow_mut(|ended| ended.extend(self.0.take().filter(|_| ended.len() < MOST)));
        Poll::Ready(outcome)
    }
}

thread_local! {
    static ENDED: RefCell<Vec<ReusableBoxFuture<'static, Outcome>>> = const { RefCell::new(Vec::new()) };
}

/// Places that a thread keeps.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_place_is_used_again_once_its_exchange_has_ended_and_holds_nothing_of_it() {
        let value = Arc::new(());
        for _ in 0..2 * MOST {
            let held = Arc::clone(&value);
            let ended = UnderWay::new(async move {
                let _held = held;
                Err(Refusal::Internal)
            });
            assert_eq!(ended.now_or_never().unwrap().unwrap_err(), Refusal::Internal);
            assert_eq!((ENDED.with_borrow(Vec::len), Arc::strong_count(&value)), (1, 1));
        }
        let others: Vec<_> = (0..2 * MOST).map(|_| UnderWay::new(std::future::ready(Err(Refusal::Internal)))).collect();
        others.into_iter().for_each(|other| drop(other.now_or_never()));
        assert_eq!(ENDED.with_borrow(Vec::len), MOST);
    }

    #[test]
    fn what_is_given_up_half_way_is_not_kept() {
        let value = Arc::new(());
        let held = Arc::clone(&value);
        let mut given_up = UnderWay::new(async move {
            std::future::pending::<()>().await;
            drop(held);
            Err(Refusal::Internal)
        });
        assert!((&mut given_up).now_or_never().is_none());
        drop(given_up);
        assert_eq!((ENDED.with_borrow(Vec::len), Arc::strong_count(&value)), (0, 1));
    }
}
