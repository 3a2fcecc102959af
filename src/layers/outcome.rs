//! The futures of layers that decide at once: refused, or whatever the inner service says.
//!
//! A boxed future costs an allocation for each request and layer; these two types cost nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use crate::refusal::Refusal;

pin_project! {
    /// A refusal that is known already, or the inner service's future.
    #[project = DecidedProjection]
    #[derive(Debug)]
    pub enum Decided<F> {
        /// The inner service was not called.
        Refused {
            refusal: Refusal,
        },
        /// The inner service decides.
        Passed {
            #[pin]
            inner: F,
        },
    }
}

/// What a layer does with the outcome of the inner service: add a field, take one away, count.
pub trait Amend {
    /// Called once, with the answer's head or the refusal.
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal>;
}

pin_project! {
    /// The inner service's future with an [`Amend`] at its end.
    #[derive(Debug)]
    pub struct Amended<F, A> {
        #[pin]
        inner: F,
        amend: Option<A>,
    }
}

impl<F, A> Amended<F, A> {
    /// `inner`, then `amend`.
    pub fn new(inner: F, amend: A) -> Self {
        Amended { inner, amend: Some(amend) }
    }
}

impl<F, T> Future for Decided<F>
where
    F: Future<Output = Result<T, Refusal>>,
{
    type Output = Result<T, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            DecidedProjection::Refused { refusal } => Poll::Ready(Err(*refusal)),
            DecidedProjection::Passed { inner } => inner.poll(cx),
        }
    }
}

impl<F, A, R> Future for Amended<F, A>
where
    F: Future<Output = Result<Response<R>, Refusal>>,
    A: Amend,
{
    type Output = Result<Response<R>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.inner.poll(cx));
        Poll::Ready(match this.amend.take() {
            Some(amend) => amend.amend(outcome),
            None => outcome,
        })
    }
}
