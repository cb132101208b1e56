//! A foreign AMQP client, on a runtime of its own, so that tests read as plain steps.

use super::PATIENCE;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use std::{future::Future, time::Duration};
use tokio::{runtime::Runtime, task::JoinHandle};

/// The content type of check messages.
pub const CHECKS: &str = "application/vnd.pointsd.checks+json";

/// A check message of a daemon: these entries, each of which has these checks done.
pub fn check_message(entries: &[serde_json::Value], done: u32) -> (Vec<u8>, BasicProperties) {
    let mut headers = FieldTable::default();
    headers.insert("x-pointsd-source-queue".into(), AMQPValue::LongString("test".into()));
    if done > 0 {
        headers.insert("x-pointsd-check".into(), AMQPValue::LongLongInt(done.into()));
    }
    let properties =
        BasicProperties::default().with_content_type(CHECKS.into()).with_delivery_mode(2).with_headers(headers);
    (serde_json::json!({"version": 1, "checks": entries}).to_string().into_bytes(), properties)
}

/// An entry about a points message.
pub fn check_entry(payment: &str, user: &str, points: u64) -> serde_json::Value {
    serde_json::json!({"payment_id": payment, "user_id": user, "points": points})
}

/// A connection with a channel in confirm mode.
pub struct Client {
    runtime: Runtime,
    connection: Connection,
    channel: Channel,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn connect(url: &str) -> lapin::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default()).await
}

/// Waits until a node that has just opened its port lets somebody in.
pub fn wait_for_login(url: &str) {
    let runtime = runtime();
    super::eventually("RabbitMQ lets a client in", || {
        runtime.block_on(async {
            let connection = connect(url).await.ok()?;
            let _ = connection.close(200, "done".into()).await;
            Some(())
        })
    });
}

impl Client {
    pub fn connect(url: &str) -> Self {
        let runtime = runtime();
        let (connection, channel) = runtime.block_on(async {
            let connection = connect(url).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions { nowait: false }).await.unwrap();
            (connection, channel)
        });
        Self { runtime, connection, channel }
    }

    fn wait<T>(&self, work: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("the broker answers") })
    }

    /// Declares a durable queue with these arguments.
    pub fn declare_queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options =
            QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
        self.wait(self.channel.queue_declare(name.into(), options, table)).unwrap();
    }

    /// Declares a durable exchange.
    pub fn declare_exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            nowait: false,
        };
        self.wait(self.channel.exchange_declare(name.into(), kind, options, FieldTable::default())).unwrap();
    }

    /// One that nobody may publish to: whoever tries loses the channel.
    pub fn declare_internal_exchange(&self, name: &str) {
        let options =
            ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: true, nowait: false };
        self.wait(self.channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()))
            .unwrap();
    }

    pub fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions { nowait: false };
        let bind = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        self.wait(bind).unwrap();
    }

    /// Binds, if the exchange is there.
    pub fn try_bind(&self, queue: &str, exchange: &str, key: &str) -> Option<()> {
        self.runtime.block_on(async {
            // A refusal closes the channel, and may be told to whoever opens the next one.
            let channel = self.connection.create_channel().await.ok()?;
            let options = QueueBindOptions { nowait: false };
            channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await.ok()?;
            let _ = channel.close(200, "done".into()).await;
            Some(())
        })
    }

    pub fn delete_exchange(&self, name: &str) {
        let options = ExchangeDeleteOptions { if_unused: false, nowait: false };
        self.wait(self.channel.exchange_delete(name.into(), options)).unwrap();
    }

    pub fn delete_queue(&self, name: &str) {
        self.try_delete_queue(name).unwrap();
    }

    /// The same where a broker that fails at it costs nothing but its room. The client is of no more use then.
    pub fn try_delete_queue(&self, name: &str) -> lapin::Result<()> {
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        self.wait(self.channel.queue_delete(name.into(), options)).map(drop)
    }

    /// Publishes and waits for the confirms.
    pub fn publish(&self, exchange: &str, key: &str, messages: impl IntoIterator<Item = (Vec<u8>, BasicProperties)>) {
        self.finish(self.begin(exchange, key, messages.into_iter().collect()));
    }

    /// Begins to publish, in the background.
    pub fn begin(&self, exchange: &str, key: &str, messages: Vec<(Vec<u8>, BasicProperties)>) -> JoinHandle<()> {
        let (channel, exchange, key) = (self.channel.clone(), exchange.to_owned(), key.to_owned());
        self.runtime.spawn(async move {
            let mut confirms = Vec::new();
            for (body, properties) in messages {
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
                confirms.push(channel.basic_publish(exchange, key, options, &body, properties).await.unwrap());
            }
            for confirm in confirms {
                let confirmation = confirm.await.unwrap();
                assert!(confirmation.is_ack() && confirmation.take_message().is_none(), "routed and confirmed");
            }
        })
    }

    /// Waits until everything that was begun is confirmed.
    pub fn finish(&self, begun: JoinHandle<()>) {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, begun).await.expect("confirmed").unwrap() });
    }

    /// How many messages are ready in a queue: neither delivered nor gone. `None` when there is no such queue.
    pub fn ready(&self, queue: &str) -> Option<u32> {
        self.runtime.block_on(async {
            let channel = self.connection.create_channel().await.unwrap();
            let options = QueueDeclareOptions {
                passive: true,
                durable: true,
                exclusive: false,
                auto_delete: false,
                nowait: false,
            };
            let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
            let _ = channel.close(200, "done".into()).await;
            Some(declared.message_count())
        })
    }

    /// Takes a message out of a queue for good.
    pub fn take(&self, queue: &str) -> Option<BasicGetMessage> {
        self.wait(self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true })).unwrap()
    }

    /// Asks for a message, and waits until that has ended the connection: lapin does not answer then.
    pub fn lose_connection_over_a_message_of(self, queue: &str) {
        let lost = async {
            let get = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false });
            let lost = async {
                while self.connection.status().connected() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                taken = get => assert!(taken.is_err(), "lapin has decoded a message that it could not"),
                () = lost => {}
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, lost).await.expect("the connection is lost") });
    }

    /// Takes a message and gives it back; `false` when there was none.
    pub fn take_and_return(&self, queue: &str) -> bool {
        let taken = self.wait(self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false })).unwrap();
        let Some(message) = taken else { return false };
        let nack = BasicNackOptions { multiple: false, requeue: true };
        self.wait(self.channel.basic_nack(message.delivery.delivery_tag, nack)).unwrap();
        true
    }

    /// Takes messages and holds them until this client is dropped.
    pub fn hold(&self, queue: &str, most: usize) -> usize {
        let take = |_| self.wait(self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false })).unwrap();
        (0..most).map_while(take).count()
    }

    /// The properties of the first messages of a queue, which stay there.
    pub fn look(&self, queue: &str, most: usize) -> Vec<BasicProperties> {
        let take = |_| self.wait(self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false })).unwrap();
        let taken: Vec<BasicGetMessage> = (0..most).map_while(take).collect();
        for message in &taken {
            let nack = BasicNackOptions { multiple: false, requeue: true };
            self.wait(self.channel.basic_nack(message.delivery.delivery_tag, nack)).unwrap();
        }
        taken.into_iter().map(|message| message.delivery.properties.clone()).collect()
    }

    /// Takes the check messages out of a queue: their payments, and the checks that are done of each.
    pub fn drain_checks(&self, queue: &str) -> Vec<(String, u32)> {
        let mut checks = Vec::new();
        for message in self.drain(queue) {
            let properties = &message.delivery.properties;
            assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some(CHECKS), "{properties:?}");
            let headers = properties.headers().as_ref().unwrap().inner();
            let done = headers.get("x-pointsd-check").map_or(0, |done| match done {
                AMQPValue::LongLongInt(done) => u32::try_from(*done).unwrap(),
                other => panic!("{other:?}"),
            });
            let body: serde_json::Value = serde_json::from_slice(&message.delivery.data).unwrap();
            let payments = body["checks"].as_array().unwrap().iter();
            checks.extend(payments.map(|check| (check["payment_id"].as_str().unwrap().to_owned(), done)));
        }
        checks
    }

    /// Takes everything out of a queue.
    pub fn drain(&self, queue: &str) -> Vec<BasicGetMessage> {
        std::iter::from_fn(|| self.take(queue)).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let close = async {
            let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.close(200, "done".into())).await;
        };
        self.runtime.block_on(close);
    }
}

/// A header's text.
pub fn text(message: &BasicGetMessage, header: &str) -> Option<String> {
    match message.delivery.properties.headers().as_ref()?.inner().get(header)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => Some(format!("{other:?}")),
    }
}
