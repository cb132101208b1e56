//! The version of the broker, read from its server properties before login. lapin does not expose them.

use super::{
    STEP_TIMEOUT,
    connect::{BrokerUrl, tls_config},
};
use crate::{
    broker::TlsFiles,
    observe::events::{self, Event as _},
};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::{
    tcp::AMQPUriTcpExt,
    types::{AMQPValue, FieldTable, parsing::parse_field_table},
};
use std::io;

/// The first bytes that a client sends (AMQP 0-9-1, "Protocol header").
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// The maximum size of the first frame; that of RabbitMQ has half a kibibyte.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// The first major version that ignores an `x-death` header of a client (RabbitMQ 4.0, release notes).
const IGNORES_X_DEATH: u32 = 4;

/// Logs a warning if the broker accepts `x-death` headers from clients. Logs nothing if the version cannot be read.
pub(super) async fn warn_of_x_death(node: BrokerUrl, files: TlsFiles) {
    let Ok(Ok(properties)) = tokio::time::timeout(STEP_TIMEOUT, fetch_properties(&node, &files)).await else { return };
    let Some(version) = version(&properties) else { return };
    if major(&version).is_some_and(|major| major < IGNORES_X_DEATH) {
        events::TrustsXDeath { version: &version }.emit();
    }
}

/// Fetches the server properties, which the broker sends after the protocol header, and closes the connection.
async fn fetch_properties(BrokerUrl(uri): &BrokerUrl, files: &TlsFiles) -> io::Result<FieldTable> {
    let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
    let mut stream = uri.connect_with_config_async(tls_config(files).as_ref(), &runtime).await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    // A frame: type, channel and size; payload; end octet.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let mut payload = vec![0; size.min(MAX_FRAME_BYTES)];
    stream.read_exact(&mut payload).await?;
    parse_server_properties(&payload).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Parses the server properties of `connection.start`, which follow the class, the method and the two octets of the
/// protocol version.
fn parse_server_properties(payload: &[u8]) -> Option<FieldTable> {
    let rest = payload.strip_prefix(&[0, 10, 0, 10])?.get(2..)?;
    parse_field_table(rest).ok().map(|(_, properties)| properties)
}

fn version(properties: &FieldTable) -> Option<String> {
    let text = |name: &str| match properties.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    };
    let shown = |text: String| text.chars().filter(|character| !character.is_control()).take(32).collect();
    text("product").filter(|product| product == "RabbitMQ").and_then(|_| text("version")).map(shown)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_connection_start() {
        let mut table = Vec::new();
        for (name, value) in [("product", "RabbitMQ"), ("version", "3.10.8")] {
            table.push(u8::try_from(name.len()).unwrap());
            table.extend(name.as_bytes());
            table.push(b'S');
            table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            table.extend(value.as_bytes());
        }
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend(table);
        payload.extend([0, 0, 0, 5]);
        let properties = parse_server_properties(&payload).unwrap();
        assert_eq!(version(&properties).as_deref(), Some("3.10.8"));
        assert_eq!((major("3.10.8"), major("4.3.6"), major("x")), (Some(3), Some(4), None));
        assert!((0..20).all(|cut| parse_server_properties(&payload[..cut]).is_none()));
        assert!(parse_server_properties(&[0, 10, 0, 11, 0, 9, 0, 0, 0, 0]).is_none());
    }
}
