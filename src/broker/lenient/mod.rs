//! Deliveries that lapin cannot decode, made decodable on their way from the socket.
//!
//! lapin ends the connection at a short string that is no UTF-8 (a message id, a routing key, a header's name), at a type of
//! header value that it does not know, and at headers larger than a frame. The message comes again with the next connection.
//! So lapin reads from a stream of our own, which replaces the content header of such a message by one that has what can be
//! read of its properties, and a mark with the rest ([`mark`]). The body stays. Who takes deliveries parks what has the mark.

mod frames;
mod header;
mod mark;
mod stream;

pub(super) use mark::{Unreadable, take, with_raw};

use async_rs::{
    TokioRuntime,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt, OwnedTLSConfig},
    uri::AMQPUri,
};
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};
use stream::Lenient;

/// What a frame has besides its payload: type, channel and size before it, one octet after it. Bytes.
const FRAME_OVERHEAD: usize = 8;

/// A stream to the broker, with or without TLS.
type Socket = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// Connects as lapin does, but for the stream that it reads from.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    let runtime = async_rs::Runtime::new(Kit(lapin::runtime::default_runtime()?));
    let open = async move |uri: AMQPUri, _| {
        let frame_max = uri.query.frame_max.unwrap_or_default();
        let socket = uri.connect_with_config_async(tls.as_ref(), &lapin::runtime::default_runtime()?).await?;
        Ok(AsyncTcpStream::Plain(Lenient::new(socket, frame_max)))
    };
    Connection::connector(uri, runtime, open, properties).await
}

/// lapin's own runtime, with another type of stream.
#[derive(Debug, Clone)]
struct Kit(TokioRuntime);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <TokioRuntime as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, work: F) -> T {
        self.0.block_on(work)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn(work)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Lenient<Socket>;
    type Sleep = <TokioRuntime as Reactor>::Sleep;

    /// lapin registers no sockets.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Connections are made by [`connect`], which knows TLS.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
