//! The types of settings, and how each is read and shown.

use std::{net::SocketAddr, path::PathBuf, time::Duration};
use toml::Value;

/// An untyped value.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    /// A value of the file.
    Toml(Value),
    /// A value of the environment: text, or TOML syntax if the setting is a list.
    Text(String),
}

impl Raw {
    /// The value for an error message.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Toml(value) => shown(&value.to_string()),
            Self::Text(text) => shown(&format!("{text:?}")),
        }
    }
}

/// A given value for an error message, in one line. A value that contains a URL is not shown: the URL may contain a password.
pub(super) fn shown(given: &str) -> String {
    if given.contains("://") {
        return "a URL".to_owned();
    }
    let mut line = String::with_capacity(given.len());
    for character in given.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// The type of a setting.
pub(super) trait Setting: Sized {
    /// The values that the type accepts, for an error message.
    const WANTED: &'static str;
    /// Reads a value; `None` if the type does not accept it.
    fn read(raw: &Raw) -> Option<Self>;
    /// The value as `check-config` prints it.
    fn show(&self) -> Value;
}

impl Setting for String {
    const WANTED: &'static str = "a string";
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Toml(value) => value.as_str().map(str::to_owned),
            Raw::Text(text) => Some(text.clone()),
        }
    }
    fn show(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Setting for i64 {
    const WANTED: &'static str = "a whole number";
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Toml(value) => value.as_integer(),
            Raw::Text(text) => text.trim().replace('_', "").parse().ok(),
        }
    }
    fn show(&self) -> Value {
        Value::Integer(*self)
    }
}

impl Setting for bool {
    const WANTED: &'static str = "true or false";
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Toml(value) => value.as_bool(),
            Raw::Text(text) => text.trim().parse().ok(),
        }
    }
    fn show(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Setting for Vec<String> {
    const WANTED: &'static str = "a list of strings, as in [\"a\", \"b\"]";
    fn read(raw: &Raw) -> Option<Self> {
        let value = match raw {
            Raw::Toml(value) => value.clone(),
            Raw::Text(text) => of_toml(text)?,
        };
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    }
    fn show(&self) -> Value {
        Value::Array(self.iter().map(Setting::show).collect())
    }
}

/// Parses a single value in TOML syntax.
fn of_toml(text: &str) -> Option<Value> {
    let mut table = toml::from_str::<toml::Table>(&format!("list = {text}")).ok()?;
    if table.len() == 1 { table.remove("list") } else { None }
}

/// A decimal as a string or a whole number. A floating-point number is refused: it is not exact.
#[derive(Debug, Clone)]
pub(super) struct Text(pub(super) String);

impl Setting for Text {
    const WANTED: &'static str = "a decimal as a string, as in \"0.01\"";
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Toml(Value::String(text)) => Some(Self(text.clone())),
            Raw::Toml(Value::Integer(number)) => Some(Self(number.to_string())),
            Raw::Toml(_) => None,
            Raw::Text(text) => Some(Self(text.trim().to_owned())),
        }
    }
    fn show(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// A list of status values, which can be numbers: `[0, 1]` is `["0", "1"]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Words(pub(super) Vec<String>);

impl Setting for Words {
    const WANTED: &'static str = "a list of strings or whole numbers, as in [\"TRADE_SUCCESS\"] or [1, 2]";
    fn read(raw: &Raw) -> Option<Self> {
        let value = match raw {
            Raw::Toml(value) => value.clone(),
            Raw::Text(text) => of_toml(text)?,
        };
        let word = |item: &Value| match item {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Boolean(flag) => Some(flag.to_string()),
            _ => None,
        };
        value.as_array()?.iter().map(word).collect::<Option<Vec<_>>>().map(Self)
    }
    fn show(&self) -> Value {
        self.0.show()
    }
}

/// Any value, for a key that must not be given.
impl Setting for Value {
    const WANTED: &'static str = "nothing";
    fn read(raw: &Raw) -> Option<Self> {
        Some(match raw {
            Raw::Toml(value) => value.clone(),
            Raw::Text(text) => Value::String(text.clone()),
        })
    }
    fn show(&self) -> Value {
        self.clone()
    }
}

impl Setting for Duration {
    const WANTED: &'static str = "a duration, as in \"500ms\", \"25s\" or \"2m\"";
    fn read(raw: &Raw) -> Option<Self> {
        humantime::parse_duration(&String::read(raw)?).ok()
    }
    fn show(&self) -> Value {
        Value::String(humantime::format_duration(*self).to_string().replace(' ', ""))
    }
}

impl Setting for PathBuf {
    const WANTED: &'static str = "the path of a file";
    fn read(raw: &Raw) -> Option<Self> {
        // A URL is a mistake here, and may be secret.
        String::read(raw).filter(|path| !path.is_empty() && !path.contains("://")).map(Self::from)
    }
    fn show(&self) -> Value {
        Value::String(self.display().to_string())
    }
}

impl Setting for SocketAddr {
    const WANTED: &'static str = "an address and a port, as in \"127.0.0.1:10187\" or \"[::1]:10187\"";
    fn read(raw: &Raw) -> Option<Self> {
        String::read(raw)?.parse().ok()
    }
    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
}

/// A secret that can be read from a file.
pub(super) trait Lines {
    /// Reads the secret from the text of a file, without the final newline.
    fn of_lines(text: &str) -> Self;
}

impl Lines for String {
    fn of_lines(text: &str) -> Self {
        text.trim().to_owned()
    }
}

impl Lines for Vec<String> {
    fn of_lines(text: &str) -> Self {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}
