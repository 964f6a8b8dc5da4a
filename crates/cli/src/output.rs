//! What commands print: results on standard output, everything else on standard error.

use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static HAS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether a JSON object was printed.
pub fn has_json() -> bool {
    HAS_JSON.load(Ordering::Relaxed)
}

/// Prints one JSON object on standard output.
pub fn json(value: &impl Serialize) {
    HAS_JSON.store(true, Ordering::Relaxed);
    line(&serde_json::to_string(value).expect("a JSON value can be written"));
}

/// Prints a table of names and values, aligned.
pub fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        line(&format!("  {name:<width$}  {value}"));
    }
}

/// Prints a line of a result.
pub fn line(text: &str) {
    let _ = piece(&format!("{text}\n"));
}

/// Prints a piece of a result at once; stops quietly on a closed pipe. A full disk ends the program
/// with status 1: a result that is lost must not look like success.
pub fn piece(text: &str) -> ControlFlow<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ControlFlow::Break(()),
        Err(error) => {
            note(&format!("error: cannot write to standard output: {error}"));
            std::process::exit(1)
        }
    }
}

/// Prints a line on standard error. A closed pipe there does not stop a run.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain_words(text));
}

/// The system's errors as words in a sentence: `no such file or directory` for
/// `No such file or directory (os error 2)`.
pub fn plain_words(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let words = out.rfind([':', '(']).map_or(0, |at| at + 1);
        let words = words + (out[words..].len() - out[words..].trim_start().len());
        if let Some(first) = out[words..].chars().next().filter(char::is_ascii_uppercase) {
            out.replace_range(words..=words, &first.to_ascii_lowercase().to_string());
        }
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
        out.push_str(rest.strip_prefix(')').unwrap_or(rest));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_words() {
        let no = std::io::Error::from_raw_os_error(2);
        let twice = format!("a: {no}. Or b ({no}), C");
        let words = no.to_string().replace(" (os error 2)", "").replacen('N', "n", 1);
        assert_eq!(plain_words(&twice), format!("a: {words}. Or b ({words}), C"));
        assert_eq!(plain_words(&no.to_string()), words);
        assert_eq!(plain_words("Nothing (of the kind)"), "Nothing (of the kind)");
    }
}
