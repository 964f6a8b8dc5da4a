//! How the tables of the run file are declared: one line of a [`section`] is type, check, default,
//! documentation and example of a key, and one line of a [`tagged`] table is a value of its `kind`.

/// An enum of the run file with the texts of its values.
macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $value:literal),+ $(,)?
    }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[doc = $doc])+ #[serde(rename = $value)] $variant),+ }

        impl $name {
            const VALUES: &[&str] = &[$($value),+];
        }
    };
}

/// A table of the run file, or with `if kind`, the keys that one value of `kind` adds: a struct of
/// typed fields and the schema that its values are checked with. A key that ends in `changeable`
/// may change between a run and its `--resume`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        [$table:literal $(if kind = $kind:literal)?] $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $check:expr, $default:expr, $example:literal
                $(, $changeable:ident)?;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $type,)+ }

        impl $name {
            const ONLY_IF: Option<&str> = section!(@only_if $($kind)?);

            pub(super) const SECTION: Section = Section {
                table: $table,
                about: concat!($($about),+),
                keys: &[$(Key {
                    path: concat!($table, ".", stringify!($field)),
                    only_if: Self::ONLY_IF,
                    check: $check,
                    default: $default,
                    doc: concat!($($doc),+),
                    example: $example,
                    changeable: section!(@changeable $($changeable)?),
                }),+],
                kinds: &[],
            };
        }
    };
    (@only_if) => { None };
    (@only_if $kind:literal) => { Some($kind) };
    (@changeable) => { false };
    (@changeable changeable) => { true };
}

/// A table whose key `kind` decides which other keys it has: an enum whose variants hold the
/// section of their kind, if that has keys of its own.
macro_rules! tagged {
    (
        $(#[doc = $about:literal])+
        [$table:literal] $name:ident, $default:expr, $example:literal $(, $changeable:ident)? {
            $($(#[doc = $doc:literal])+ $variant:ident $(($section:ident))? = $kind:literal;)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $kind)] $variant $(($section))?),+
        }

        impl $name {
            pub(super) const SECTION: Section = Section {
                table: $table,
                about: concat!($($about),+),
                keys: &[Key {
                    path: concat!($table, ".kind"),
                    only_if: None,
                    check: Check::Choice(&[$($kind),+]),
                    default: $default,
                    doc: concat!($("`", $kind, "`:", $($doc,)+ "; "),+),
                    example: $example,
                    changeable: section!(@changeable $($changeable)?),
                }],
                kinds: &[$($(&$section::SECTION,)?)+],
            };

            /// The value of `kind`.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $kind),+ }
            }
        }
    };
}

pub(super) use {choice, section, tagged};
