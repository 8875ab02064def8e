//! How slowly a client may send and receive.
//!
//! A request's body must go on: [`Paced`] refuses one that stands still, or crawls, long before the request's own time
//! is over. An answer must be taken: [`Patient`] cuts off a client that does not read, which would otherwise keep the
//! answer in memory and its connection for ever. (Heads, and connections between two requests, have hyper's timer.)

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a body may stand still, and how long it may begin slowly.
const STANDSTILL: Duration = Duration::from_secs(10);

/// How fast a body must come after that, on average.
const SLOWEST_BYTES_PER_SECOND: u32 = 1024;

/// How long an answer may wait for [`PROGRESS_BYTES`] of it, or all, to be taken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Less than this is no progress: whoever takes a byte now and then reads nothing.
const PROGRESS_BYTES: usize = 16 << 10;

/// A timer that costs nothing until somebody waits.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when `span` is over since the first poll after the last `stop`.
    fn poll(&mut self, span: Duration, context: &mut Context<'_>) -> Poll<()> {
        let end = || Box::pin(sleep_until(Instant::now() + span));
        self.0.get_or_insert_with(end).as_mut().poll(context)
    }

    fn stop(&mut self) {
        self.0 = None;
    }
}

/// The body of a request, which fails when it comes too slowly.
#[derive(Debug)]
pub(crate) struct Paced {
    body: Body,
    timer: Timer,
    waiting_since: Option<Instant>,
    waited: Duration,
    bytes: u32,
    too_slow: Arc<AtomicBool>,
}

impl Paced {
    /// Also answers where it will say that it was too slow: the error itself passes through hands that do not tell.
    pub(crate) fn new(body: Body) -> (Paced, Arc<AtomicBool>) {
        let too_slow = Arc::new(AtomicBool::new(false));
        let (timer, said) = (Timer::default(), Arc::clone(&too_slow));
        (Paced { body, timer, waiting_since: None, waited: Duration::ZERO, bytes: 0, too_slow }, said)
    }

    /// How long the next bytes may take. Only waiting for the client counts, not the server's own work in between.
    fn patience(&self) -> Duration {
        let earned = Duration::from_secs(1).saturating_mul(self.bytes) / SLOWEST_BYTES_PER_SECOND;
        STANDSTILL.min((STANDSTILL + earned).saturating_sub(self.waited))
    }
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending() {
            self.waiting_since.get_or_insert_with(Instant::now);
            let patience = self.patience();
            ready!(self.timer.poll(patience, context));
            self.too_slow.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))));
        }
        self.timer.stop();
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.bytes = self.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection whose writes fail when nobody reads.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    stream: S,
    timer: Timer,
    taken: usize,
}

impl<S> Patient<S> {
    pub(crate) fn new(stream: S) -> Patient<S> {
        Patient { stream, timer: Timer::default(), taken: 0 }
    }

    fn wrote(
        &mut self,
        polled: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Pending => self.wait(context),
            Poll::Ready(Ok(bytes)) => {
                self.taken += bytes;
                if self.taken >= PROGRESS_BYTES {
                    self.rest();
                }
                polled
            }
            Poll::Ready(Err(_)) => polled,
        }
    }

    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.timer.poll(PATIENCE, context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }

    fn rest(&mut self) {
        self.taken = 0;
        self.timer.stop();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.wrote(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.wrote(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has handed over everything.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.wait(context),
            polled @ Poll::Ready(_) => {
                self.rest();
                polled
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(context) {
            Poll::Pending => self.wait(context),
            polled @ Poll::Ready(_) => polled,
        }
    }
}
