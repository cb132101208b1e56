//! The names of sources, queues and exchanges, which must not collide.

use super::Context;
use crate::{
    broker::{BrokerSettings, ExchangeType, SourceKind, SourceSettings, check_delay_queue, retry_queue},
    config::{reader::Reader, value::shown},
    domain::retry::{Delay, RetryPolicy},
};

/// The maximum length of a queue's name in AMQP. Bytes.
const MAX_NAME: usize = 255;

/// Refuses two sources with one name, two queues with one name, and two types for one exchange.
pub(super) fn distinct(reader: &mut Reader, sources: &[(usize, SourceSettings)], context: &Context<'_>) {
    let Some(broker) = context.broker else { return };
    let mut taken = taken_queues(broker, sources, context);
    if context.events == Some(broker.exchange.as_str()) {
        reader.fault("events.exchange", "is broker.exchange, which is of another type; must be another exchange");
    }
    let delays = distinct_delays(reader, context.retry, !sources.is_empty());
    let mut names: Vec<&str> = Vec::new();
    let mut exchanges: Vec<(&str, ExchangeType)> = vec![(broker.exchange.as_str(), ExchangeType::Direct)];
    exchanges.extend(context.events.map(|events| (events, ExchangeType::Topic)));
    for (number, source) in sources {
        if names.contains(&source.name.as_str()) {
            let text = format!("given {:?}, the name of another source; must be another name", source.name);
            reader.fault(&super::key(*number, "name"), text);
        }
        names.push(&source.name);
        take_queues(reader, *number, source, &delays, &mut taken);
        take_exchange(reader, *number, source, &mut exchanges);
    }
    if let Some(long) = taken.iter().find(|name| name.len() > MAX_NAME && name.starts_with(&broker.check_queue)) {
        let text = format!("makes the name of its delay queue {long} too long; a name has at most {MAX_NAME} bytes");
        reader.fault("broker.check_queue", text);
    }
}

/// The queues of the broker's section, with their delay queues, and the check delay queues of the sources.
fn taken_queues(broker: &BrokerSettings, sources: &[(usize, SourceSettings)], context: &Context<'_>) -> Vec<String> {
    let BrokerSettings { credit_queue, check_queue, dead_queue, .. } = broker;
    let mut taken = vec![credit_queue.clone(), check_queue.clone(), dead_queue.clone()];
    for of in [credit_queue, check_queue] {
        taken.extend(context.retry.delays().iter().map(|delay| retry_queue(of, delay)));
    }
    let own = sources.iter().filter_map(|(_, source)| match &source.kind {
        SourceKind::Notification(notification) => Some(notification.policy.delays()),
        SourceKind::Credit => None,
    });
    let checks = context.compensation.policy.delays().iter().chain(own.flatten());
    taken.extend(checks.map(|delay| check_delay_queue(check_queue, delay)));
    taken
}

/// The delays of `[retry]`, each once. With sources, a delay that is given twice is refused: it has one queue for each source.
fn distinct_delays<'a>(reader: &mut Reader, retry: &'a RetryPolicy, has_sources: bool) -> Vec<&'a Delay> {
    let mut delays: Vec<&Delay> = Vec::new();
    for delay in retry.delays() {
        if !delays.contains(&delay) {
            delays.push(delay);
        } else if has_sources {
            let text = format!("has {} twice; with [[source]] each delay must be given once", delay.as_str());
            reader.fault("retry.delays", text);
        }
    }
    delays
}

/// Adds the queue of a source and its delay queues to the queues that are taken.
fn take_queues(
    reader: &mut Reader,
    number: usize,
    source: &SourceSettings,
    delays: &[&Delay],
    taken: &mut Vec<String>,
) {
    let retries = delays.iter().map(|delay| retry_queue(&source.queue, delay));
    for name in std::iter::once(source.queue.clone()).chain(retries) {
        let fault = if name.len() > MAX_NAME {
            format!("makes the name of its delay queue {name} too long; a name has at most {MAX_NAME} bytes")
        } else if taken.contains(&name) {
            let name = shown(&format!("{name:?}"));
            format!("needs the queue {name}, which has another use; must be a queue of its own")
        } else {
            taken.push(name);
            continue;
        };
        return reader.fault(&super::key(number, "queue"), fault);
    }
}

/// Adds the exchange of a source to the exchanges that are configured.
fn take_exchange<'a>(
    reader: &mut Reader,
    number: usize,
    source: &'a SourceSettings,
    exchanges: &mut Vec<(&'a str, ExchangeType)>,
) {
    match exchanges.iter().find(|(name, _)| *name == source.exchange) {
        Some((_, other)) if *other != source.exchange_type => {
            let (given, exchange) = (source.exchange_type.as_str(), shown(&source.exchange));
            let text = format!(
                "given {given:?}; exchange {exchange} is configured elsewhere as {:?}; must be the same",
                other.as_str()
            );
            reader.fault(&super::key(number, "exchange_type"), text);
        }
        Some(_) => {}
        None => exchanges.push((&source.exchange, source.exchange_type)),
    }
}
