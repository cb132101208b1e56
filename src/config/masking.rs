//! Masks for secrets in the output of `check-config`.

/// The parameters of URLs that are not secret. Any other parameter is masked.
const PLAIN_PARAMETERS: [&str; 16] = [
    "application_name",
    "auth_mechanism",
    "channel_max",
    "connect_timeout",
    "connection_timeout",
    "dbname",
    "frame_max",
    "heartbeat",
    "host",
    "keepalives",
    "keepalives_idle",
    "port",
    "sslmode",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Masks the password in a URL, also if its special characters are not encoded: everything from the first colon to the last
/// `@`, every parameter that is not in the list above, and the fragment.
pub(super) fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => rest.to_owned(),
    };
    let (rest, fragment) = rest.split_once('#').map_or((rest.as_str(), ""), |(rest, _)| (rest, "#***"));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let parameters: Vec<String> = parameters
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if PLAIN_PARAMETERS.contains(&name) => parameter.to_owned(),
            Some((name, _)) => format!("{name}=***"),
            None => "***".to_owned(),
        })
        .collect();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{place}{mark}{}{fragment}", parameters.join("&"))
}

/// Masks the URL of a gateway except for its host: any other part may contain a key.
pub(super) fn masked_path(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}/***"),
        None => format!("{scheme}://{authority}/***"),
    }
}

/// Masks the value of a header, given as `Name: value`.
pub(super) fn masked_header(line: &str) -> String {
    format!("{}: ***", line.split(':').next().unwrap_or_default())
}
