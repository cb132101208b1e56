//! Settings whose values are keywords.

use crate::{
    broker::{ExchangeType, QueueType},
    config::value::{Raw, Setting},
    observe::settings::{LogFormat, LogLevel},
};
use toml::Value;

/// Defines a type whose values are keywords.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name {
            $($(#[$word_doc])* $variant),+
        }

        impl $name {
            /// The keyword in the configuration.
            pub(super) fn as_str(self) -> &'static str {
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
    /// The treatment of a credit whose payment is not paid.
    UnpaidWord, "\"reverse\" or \"dead\"", {
        /// The credit is reversed.
        Reverse = "reverse",
        /// The check is parked.
        Dead = "dead",
    }
}

word! {
    /// The type of the payment source.
    SourceWord, "\"none\", \"sql\", \"http\" or \"sql+http\"", {
        /// No payment source.
        None = "none",
        /// A payment table.
        Sql = "sql",
        /// A gateway.
        Http = "http",
        /// A payment table, then a gateway.
        SqlThenHttp = "sql+http",
    }
}

word! {
    /// The format of the bodies of a source.
    FormatWord, "\"credit\", \"payment_id\" or \"pay_notify\"", {
        /// Points messages.
        Credit = "credit",
        /// A payment ID.
        PaymentId = "payment_id",
        /// A pay-result notification.
        PayNotify = "pay_notify",
    }
}

/// Reads the keywords of a type of another module.
macro_rules! words_of {
    ($name:ident, $wanted:literal, [$($variant:ident),+]) => {
        impl Setting for $name {
            const WANTED: &'static str = $wanted;
            fn read(raw: &Raw) -> Option<Self> {
                let text = String::read(raw)?;
                [$(Self::$variant),+].into_iter().find(|word| word.as_str() == text)
            }
            fn show(&self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
    };
}

words_of!(QueueType, "\"quorum\" or \"classic\"", [Quorum, Classic]);
words_of!(ExchangeType, "\"direct\", \"fanout\" or \"topic\"", [Direct, Fanout, Topic]);
words_of!(LogLevel, "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"", [Error, Warn, Info, Debug, Trace]);
words_of!(LogFormat, "\"text\", \"json\" or \"journald\"", [Text, Json, Journald]);
