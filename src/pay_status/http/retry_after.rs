//! `Retry-After` (RFC 9110, section 10.2.3): seconds, or an HTTP-date.

use jiff::{
    Timestamp,
    fmt::{rfc2822::DateTimeParser, strtime},
    tz::TimeZone,
};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use std::time::Duration;

/// Returns how long a response asks to wait; `None` where it does not, or where the header is invalid. A date is
/// relative to the gateway's own clock, if the response contains it.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?;
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too large for 64 bits is a long time nevertheless.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let now = text(headers, &DATE).and_then(date).unwrap_or(now);
    Some(Duration::try_from(date(value)?.duration_since(now)).unwrap_or_default())
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Parses an HTTP-date. The preferred format is one of RFC 2822; two obsolete formats must be accepted, too.
fn date(text: &str) -> Option<Timestamp> {
    let obsolete = |format: &str| {
        let date = strtime::parse(format, text).ok()?.to_datetime().ok()?;
        date.to_zoned(TimeZone::UTC).ok().map(|date| date.timestamp())
    };
    let preferred = DateTimeParser::new().parse_timestamp(text).ok();
    preferred.or_else(|| obsolete("%A, %d-%b-%y %H:%M:%S GMT")).or_else(|| obsolete("%a %b %e %H:%M:%S %Y"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn seconds_and_dates_are_read() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        for (value, date, seconds) in [
            ("120", None, Some(120)),
            ("0", None, Some(0)),
            (" 7 ", None, Some(7)),
            ("99999999999999999999999", None, Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None, Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", None, Some(0)),
            ("Sun, 06 Nov 1994 10:00:10 GMT", Some("Sun, 06 Nov 1994 10:00:00 GMT"), Some(10)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some("yesterday"), Some(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None, Some(37)),
            ("Sun Nov  6 08:49:37 1994", None, Some(37)),
            ("", None, None),
            ("-1", None, None),
            ("1.5", None, None),
            ("soon", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            if let Some(date) = date {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
