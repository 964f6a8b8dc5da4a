//! Numbers for people, and text for HTML.

/// Text as HTML, safe in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// About four significant digits.
pub(super) fn number(x: f64) -> String {
    match x.abs() {
        a if a >= 1e15 || (a < 1e-3 && a > 0.0) => format!("{x:.2e}"),
        a if a >= 1000.0 => count(x),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

/// A whole number with separators: 12,345.
pub(super) fn count(x: f64) -> String {
    let digits = format!("{:.0}", x.abs());
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if x <= -0.5 { format!("-{out}") } else { out }
}

/// As [`count`], with tenths where it is not whole: 12,345.5.
pub(super) fn tenths(x: f64) -> String {
    let tenths = (10.0 * x).round();
    match tenths % 10.0 {
        0.0 => count(x),
        rest => format!("{}.{rest}", count((tenths / 10.0).trunc())),
    }
}

/// With a prefix: 1.2 M, 360 M, 1.3 B.
pub(super) fn short_count(x: f64) -> String {
    match x {
        x if x >= 1e9 => format!("{} B", three_digits(x / 1e9)),
        x if x >= 1e6 => format!("{} M", three_digits(x / 1e6)),
        x if x >= 1e4 => format!("{} k", three_digits(x / 1e3)),
        x => count(x),
    }
}

/// Bytes with a binary unit.
pub(super) fn bytes(x: f64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| x >= *unit as f64) {
        Some((name, unit)) => format!("{} {name}", three_digits(x / *unit as f64)),
        None => format!("{x:.0} B"),
    }
}

/// Bytes with a decimal unit, as sizes of files are asked for and said.
pub(super) fn bytes_decimal(x: f64) -> String {
    match x {
        x if x >= 1e9 => format!("{:.2} GB", x / 1e9),
        x if x >= 1e6 => format!("{:.1} MB", x / 1e6),
        x if x >= 1e3 => format!("{:.1} kB", x / 1e3),
        x => format!("{x:.0} B"),
    }
}

/// Seconds in the two largest units.
pub(super) fn seconds(x: f64) -> String {
    let whole = x.round() as u64;
    match whole {
        _ if x < 1.0 => format!("{} ms", three_digits(x * 1e3)),
        0..60 => format!("{} s", three_digits(x)),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}

/// So many significant digits of what may be small: 0.0123, 1.23e-5. From 1 on as
/// [`three_digits`].
pub(super) fn significant(x: f64, digits: usize) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        a if (1e-4..1.0).contains(&a) => {
            let zeros = (-a.log10().floor()) as usize;
            format!("{x:.0$}", zeros + digits - 1)
        }
        a if a < 1e-4 => format!("{x:.0$e}", digits - 1),
        _ => three_digits(x),
    }
}

/// Three significant digits, and all before the point.
pub(super) fn three_digits(x: f64) -> String {
    match x.abs() {
        a if a >= 100.0 => count(x),
        a if a >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}
