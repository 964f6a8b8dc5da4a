//! The reference of all keys as Markdown, made from the schema that checks them.

use super::keys::SECTIONS;
use super::schema::{Check, Default, Key, Section};
use std::fmt::Write as _;

const HEAD: &str = "# Run file

<!-- Generated from the run file's schema; do not edit. -->

A run file is TOML. An unknown key, a wrong type or a value out of range is an error that names the
key and its line; a key of another tool is answered with its name here. Relative paths are relative
to the current directory. Any key can be given on the command line as `table.key=value`, which takes
the place of the file's value; text needs no quotes there. Of `num_epochs` and `max_steps`, and of
`warmup_ratio` and `warmup_steps`, only one may be given; the one on the command line takes the
place of the other in the file. The key `kind` of a table decides which further keys it has. Keys
marked with ↻ may change between a run and its `--resume`; where they name files, those must be the
same, wherever they are.
";

const COLUMNS: &str =
    "| key | value | default | meaning | example |\n| --- | --- | --- | --- | --- |\n";

/// The whole page.
pub(super) fn markdown() -> String {
    let mut page = String::from(HEAD);
    for section in SECTIONS {
        let _ = write!(page, "\n## [{}]\n\n{}\n\n", section.table, section.meaning());
        write_keys(&mut page, section);
        for key in section.keys {
            if let Check::Paths(of) = key.check {
                let _ = write!(page, "\n### [[{}]]\n\n{}\n\n", of.table, of.meaning());
                write_keys(&mut page, of);
            }
        }
        for kind in section.kinds {
            let only_if = kind.keys[0].only_if.unwrap_or_default();
            let _ = write!(page, "\nWith `kind = \"{only_if}\"`:\n\n");
            write_keys(&mut page, kind);
        }
    }
    page
}

fn write_keys(page: &mut String, section: &Section) {
    page.push_str(COLUMNS);
    for key in section.keys {
        let default = match key.default {
            Default::Required => "required".to_owned(),
            Default::Value(text) => format!("`{text}`"),
            Default::Chosen(text) => text.to_owned(),
        };
        let Key { example, check, .. } = key;
        let changeable = if key.changeable { " ↻" } else { "" };
        let (name, value, meaning) = (key.parts().1, check.describe(), key.meaning());
        let _ = writeln!(
            page,
            "| `{name}`{changeable} | {value} | {default} | {meaning} | `{example}` |"
        );
    }
}
