//! Keys and sections that are given and that no setting has.

use super::file::Given;
use crate::config::value::Raw;
use toml::Value;

/// The maximum number of sections in a list.
pub(super) const MAX_SECTIONS: usize = 100;

/// The fault of a key that is given; `None` if it is the key of a setting.
pub(super) fn fault_of_key(known: &[String], key: &str, given: &Given) -> Option<String> {
    let section = format!("{key}.");
    let is_section = known.iter().any(|known| known.starts_with(&section));
    let is_empty = matches!(&given.value, Raw::Toml(Value::Table(table)) if table.is_empty());
    if known.iter().any(|known| known == key) || (is_section && is_empty) {
        return None;
    }
    let in_list = key.strip_prefix("source.");
    let is_unnumbered = in_list.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_only_number = in_list.is_some_and(|rest| rest.parse::<usize>().is_ok());
    Some(if is_unnumbered || is_only_number || key == "source" {
        format!(
            "{key}: unknown key; sections of this name are written [[source]] (in the environment POINTSD_SOURCE__0__NAME)"
        )
    } else if is_section {
        format!("{key}: is a section; must be written as [{key}] with its keys below")
    } else {
        let hint = nearest(known, key).map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
        format!("{key}: unknown key{hint}")
    })
}

/// The known key or section that is most similar to an unknown key, if one is similar enough.
fn nearest<'a>(known: &'a [String], key: &str) -> Option<&'a str> {
    let sections = known.iter().filter_map(|known| known.rsplit_once('.').map(|(section, _)| section));
    let known = known.iter().map(String::as_str).chain(sections);
    let similar = known.map(|known| (strsim::jaro_winkler(known, key), known));
    let nearest = similar.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(similarity, _)| *similarity > 0.85);
    nearest.map(|(_, nearest)| nearest)
}

/// The fault of a section of a list, as in `source.0`; `None` if settings are read from it.
pub(super) fn fault_of_section(known: &[String], section: &str) -> Option<String> {
    let (list, number) = section.rsplit_once('.').unwrap_or((section, ""));
    if known.iter().any(|known| known.starts_with(&format!("{section}."))) {
        return None;
    }
    Some(if number.parse::<usize>().is_ok_and(|number| number >= MAX_SECTIONS) {
        format!("[[{list}]]: there are more than {MAX_SECTIONS} sections of this name")
    } else {
        format!("[[{list}]]: unknown section")
    })
}
