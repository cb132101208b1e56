//! A stream whose frames lapin can decode.

use super::frames::Filter;
use futures_util::{AsyncRead, AsyncWrite, ready};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

/// The maximum number of bytes per read from the socket.
const READ_SIZE: usize = 64 * 1024;

/// A stream whose input passes through the [`Filter`] and whose output does not change.
pub(super) struct Lenient<S> {
    socket: S,
    filter: Filter,
    read: Box<[u8]>,
    /// The bytes for lapin, beginning at `taken`.
    ready: Vec<u8>,
    taken: usize,
}

impl<S> Lenient<S> {
    /// Wraps a socket. `frame_max`: the size that the client requests; the broker may lower it.
    pub(super) fn new(socket: S, frame_max: u32) -> Self {
        let read = vec![0; READ_SIZE].into_boxed_slice();
        Self { socket, filter: Filter::new(frame_max), read, ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let count = ready!(Pin::new(&mut this.socket).poll_read(context, &mut this.read))?;
            if count == 0 && this.filter.is_open() {
                return Poll::Ready(Ok(0));
            }
            if count == 0 {
                // If the stream ends right after `connection.start`, for instance because the broker shuts down, lapin
                // never ends its attempt to connect. It always returns an error of the stream.
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, "the broker closed the connection");
                return Poll::Ready(Err(error));
            }
            this.filter.pass(&this.read[..count], &mut this.ready)?;
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, buffers)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(context)
    }
}
