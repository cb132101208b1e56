//! Settings that are one of a few words.

use crate::{
    broker::{ExchangeType, QueueType},
    config::value::{Raw, Setting},
    observe::settings::{LogFormat, LogLevel},
};
use toml::Value;

/// One of a few words.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name {
            $($(#[$word_doc])* $variant),+
        }

        impl $name {
            /// As it is written in the configuration.
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

/// Words of another module's type.
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
