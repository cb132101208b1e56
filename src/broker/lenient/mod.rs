//! Makes messages that lapin cannot decode decodable, between the socket and lapin.
//!
//! lapin closes the connection at a short string that is not UTF-8 (a message ID, a routing key, a header name), at a
//! header value of an unknown type, and at headers larger than a frame. The broker redelivers the message on the next
//! connection. Therefore lapin reads from a stream that replaces the content header of such a message. The new header
//! has the readable properties and a mark with the raw ones ([`mark`]); the body does not change. The consumer parks
//! marked messages.

mod frames;
mod header;
mod mark;
mod salvage;
mod stream;

pub(super) use mark::{Unreadable, add_raw_properties, take_mark};

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

/// The bytes of a frame without its payload: type, channel and size before it, one octet after it.
const FRAME_OVERHEAD: usize = 8;

/// A connection to the broker, with or without TLS.
type Socket = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// Connects like lapin, but lapin reads from a [`Lenient`] stream.
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

/// The runtime of lapin with [`Lenient`] as its type of stream.
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

    /// Unsupported: lapin registers no sockets.
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

    /// Unsupported: [`connect`] opens the connections, with TLS if required.
    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
