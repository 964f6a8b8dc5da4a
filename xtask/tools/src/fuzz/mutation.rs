//! Random changes to a file.

/// A generator of random numbers: SplitMix64.
pub struct Random(u64);

impl Random {
    /// Numbers of the `index`-th input of a run with this seed.
    pub fn new(seed: u64, index: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 where that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Numbers at which readers stumble.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "1e308",
    "-1e-320",
    "0.0",
    "1e999",
];

/// Pieces of the languages that are read: JSON, Jinja, TOML.
const PIECES: [&str; 40] = [
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "\"\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\r\n",
    "[[[[[[[[",
    "{{ messages }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if x %}",
    "{% endif %}",
    "{% set ns = namespace(a='aaaa') %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ ns.a ~ ns.a }}",
    "| tojson(indent=99999999)",
    "| replace('', 'aaaaaaaa')",
    "* 1000000",
    "range(1000000)",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "<s>",
    "</s>",
    "=",
    "[[",
    "\"role\"",
    "\"content\"",
    "\"data_offsets\"",
    "\"shape\"",
];

/// A changed copy of one of `seeds`; `fix_length` keeps the length of a safetensors header right
/// in most copies, so that what it guards is reached.
pub fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let seed = &seeds[random.below(seeds.len())];
    let header = header_length(seed).filter(|_| random.below(4) > 0);
    let Some(length) = header else {
        return change(seed.clone(), seeds, random);
    };
    let text = change(seed[8..8 + length].to_vec(), seeds, random);
    [&(text.len() as u64).to_le_bytes()[..], &text, &seed[8 + length..]].concat()
}

/// The length of a safetensors file's header, where `bytes` are one.
fn header_length(bytes: &[u8]) -> Option<usize> {
    let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk::<8>()?)).ok()?;
    bytes.get(8..8usize.checked_add(length)?).filter(|header| header.starts_with(b"{"))?;
    Some(length)
}

fn change(mut bytes: Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = bytes.len().min(at + 1 + random.below(32));
        match random.below(10) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => insert(&mut bytes, at..at, PIECES[random.below(PIECES.len())].as_bytes()),
            5 => insert(&mut bytes, at..end, PIECES[random.below(PIECES.len())].as_bytes()),
            6 | 7 => {
                let number = number_at(&bytes, at);
                insert(&mut bytes, number, NUMBERS[random.below(NUMBERS.len())].as_bytes());
            }
            8 => {
                let copy = bytes[at..end].repeat(1 + random.below(64));
                insert(&mut bytes, at..at, &copy);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let to = other.len().min(from + random.below(256));
                insert(&mut bytes, at..end, &other[from..to]);
            }
        }
    }
    bytes
}

fn insert(bytes: &mut Vec<u8>, place: std::ops::Range<usize>, piece: &[u8]) {
    drop(bytes.splice(place, piece.iter().copied()));
}

/// The first number written in digits at or after `at`; nothing at the end where there is none.
fn number_at(bytes: &[u8], at: usize) -> std::ops::Range<usize> {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let start = bytes[at..].iter().position(u8::is_ascii_digit).map_or(bytes.len(), |i| at + i);
    let length = bytes[start..].iter().position(|byte| !is_digit(byte));
    start..length.map_or(bytes.len(), |length| start + length)
}
