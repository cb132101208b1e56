//! Payment sources: a payment table (`sql`), a gateway (`http`), or the table first and then the gateway (`both`).
//! `docs/concepts/checks.md` describes their answers.

mod http;
pub mod settings;
mod sql;
mod table_then_gateway;

pub use http::{Header, HeaderError, Limits, UrlTemplate, UrlTemplateError};
pub use sql::{Identifier, TableName};

use crate::{pay_status::settings::PayStatusSettings, pipeline::ports::PaymentSource};
use std::{sync::Arc, time::Duration};

/// Why no payment source can be created.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The HTTP client cannot be created, for instance without usable certificate authorities.
    #[error("cannot create the HTTP client: {0}")]
    Client(String),
}

/// Returns the configured payment source without connecting, or `None` when none is configured. `timeout` is the
/// deadline of every call to a database (`ledger.timeout`). `repairs` is whether the payment table is corrected when
/// the gateway has a later status. `limits` are the limits of the gateway, shared by all sources of this process.
pub fn source(
    settings: &PayStatusSettings,
    timeout: Duration,
    repairs: bool,
    limits: &Limits,
) -> Result<Option<Arc<dyn PaymentSource>>, SourceError> {
    Ok(match settings {
        PayStatusSettings::None => None,
        PayStatusSettings::Sql(sql) => Some(Arc::new(sql::SqlSource::new(sql, timeout))),
        PayStatusSettings::Http(http) => Some(Arc::new(http::HttpSource::new(http, limits)?)),
        PayStatusSettings::SqlThenHttp(sql, http) => {
            let table = sql::SqlSource::new(sql, timeout);
            Some(Arc::new(table_then_gateway::TableThenGateway::new(
                table,
                http::HttpSource::new(http, limits)?,
                repairs,
            )))
        }
    })
}

/// Quotes a value of the payment source for a log line or a header: at most 64 characters, escaped.
fn quoted(word: &str) -> String {
    const MOST: usize = 64;
    let mut line: String = word.chars().take(MOST).flat_map(char::escape_debug).collect();
    if word.chars().nth(MOST).is_some() {
        line.push('…');
    }
    format!("\"{line}\"")
}
