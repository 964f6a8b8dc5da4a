//! Words that messages have in common.

/// What follows the first of so many things, at least one: "", " and 1 other", " and 2 others".
pub(crate) fn and_others(count: usize) -> String {
    match count - 1 {
        0 => String::new(),
        1 => " and 1 other".to_owned(),
        others => format!(" and {others} others"),
    }
}
