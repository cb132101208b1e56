//! Settings that are one of a few words.

#![allow(unreachable_pub, reason = "some of them are the configuration's, some are only its way of reading")]

use super::setting::{Raw, Setting};
use crate::broker::QueueType;
use toml::Value;

/// One of a few words.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$word_doc])* $variant),+
        }

        impl $name {
            /// As it is written in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Setting for $name {
            const WANTED: &'static str = $wanted;
            fn read(raw: &Raw) -> Option<Self> {
                match String::read(raw)?.as_str() { $($word => Some(Self::$variant),)+ _ => None }
            }
            fn show(&self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
    };
}

word! {
    /// The least grave events that are logged.
    LogLevel, "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"", {
        /// Only what fails.
        Error = "error",
        /// Also what a person should look at.
        Warn = "warn",
        /// Also what changes the daemon's state.
        Info = "info",
        /// Also every batch.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

word! {
    /// How an event is written.
    LogFormat, "\"text\", \"json\" or \"journald\"", {
        /// A line for people, on standard error.
        Text = "text",
        /// A JSON object a line, on standard error.
        Json = "json",
        /// Structured, to the systemd journal.
        Journald = "journald",
    }
}

word! {
    /// What is done about a credit whose payment turns out not to be paid.
    UnpaidWord, "\"reverse\" or \"dead\"", {
        /// It is reversed.
        Reverse = "reverse",
        /// The message is parked.
        Dead = "dead",
    }
}

word! {
    /// Which payment source.
    SourceWord, "\"none\", \"sql\", \"http\" or \"sql+http\"", {
        /// None.
        None = "none",
        /// A table.
        Sql = "sql",
        /// A service.
        Http = "http",
        /// The table, then the service.
        SqlThenHttp = "sql+http",
    }
}

word! {
    /// The type of an exchange.
    ExchangeType, "\"direct\", \"fanout\" or \"topic\"", {
        /// To the queues that are bound with the message's key.
        Direct = "direct",
        /// To every queue that is bound.
        Fanout = "fanout",
        /// To the queues whose pattern the message's key matches.
        Topic = "topic",
    }
}

word! {
    /// How the bodies of a source look.
    FormatWord, "\"credit\", \"payment_id\" or \"pay_notify\"", {
        /// As points messages.
        Credit = "credit",
        /// A payment's id.
        PaymentId = "payment_id",
        /// A pay-result notification.
        PayNotify = "pay_notify",
    }
}

impl Setting for QueueType {
    const WANTED: &'static str = "\"quorum\" or \"classic\"";
    fn read(raw: &Raw) -> Option<Self> {
        match String::read(raw)?.as_str() {
            "quorum" => Some(Self::Quorum),
            "classic" => Some(Self::Classic),
            _ => None,
        }
    }
    fn show(&self) -> Value {
        Value::String(self.as_str().to_owned())
    }
}
