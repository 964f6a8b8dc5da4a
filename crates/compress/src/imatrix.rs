//! Files of importance matrices, as llama.cpp writes and reads them: of each tensor the sum of
//! squares of every column's inputs, and of how many tokens. Of a tensor with the matrices of all
//! experts each has its own.
//!
//! Written are GGUF files: `<tensor>.in_sum2` and `<tensor>.counts` in f32. Read are these and the
//! older form (`.dat`), which has means times a number of chunks.

use hone_model::FormTensor;
use hone_tensor::gguf::{
    GgufError, GgufFile, GgufPlan, GgufTensor, GgufUnwritable, GgufWriter, Meta, Value,
};
use hone_tensor::{DType, DeviceError};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What is known of the columns of each tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// By the tensors' names in GGUF files.
    pub tensors: BTreeMap<String, Sums>,
    /// What it was computed on (`imatrix.datasets`).
    pub datasets: Vec<String>,
    /// Windows of text (`imatrix.chunk_count`).
    pub chunk_count: u32,
    /// Tokens of a window (`imatrix.chunk_size`).
    pub chunk_size: u32,
}

/// Sums over the tokens that a tensor's matrices were multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// `[matrices, columns]`: sums of squares.
    pub squares: Vec<f32>,
    /// `[matrices]`: numbers of tokens.
    pub counts: Vec<f32>,
}

/// Why an importance matrix cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum ImatrixError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor's name has no place in a file.
    #[error(transparent)]
    Unwritable(#[from] GgufUnwritable),
    /// No memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It is no file of an importance matrix, or one of another model.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// File.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl Imatrix {
    /// Reads a file in either form.
    ///
    /// # Errors
    /// [`ImatrixError`], naming the file.
    pub fn read(path: &Path) -> Result<Self, ImatrixError> {
        let io = |source| ImatrixError::Io { path: path.to_owned(), source };
        let mut magic = [0; 4];
        let len = std::fs::File::open(path)
            .and_then(|mut file| io::Read::read(&mut file, &mut magic))
            .map_err(io)?;
        let found = match &magic[..len] == b"GGUF" {
            true => Self::read_gguf(path)?,
            false => Self::read_old(path, io)?.ok_or_else(|| {
                unusable(
                    path,
                    "is no importance matrix; give one that `hone \
                     compress --save-imatrix` or `llama-imatrix` wrote"
                        .to_owned(),
                )
            })?,
        };
        let is_number = |sums: &Sums| {
            let all = sums.squares.iter().chain(&sums.counts);
            all.into_iter().all(|x| x.is_finite() && *x >= 0.0)
        };
        match found.tensors.iter().find(|(_, sums)| !is_number(sums)) {
            None => Ok(found),
            Some((name, _)) => Err(unusable(
                path,
                format!("of `{name}` a sum is negative or not finite; compute it again"),
            )),
        }
    }

    /// Reads a file without a head, if it may be one: a plain file, and not a model's weights.
    fn read_old(
        path: &Path,
        io: impl Fn(io::Error) -> ImatrixError,
    ) -> Result<Option<Self>, ImatrixError> {
        let about = path.metadata().map_err(&io)?;
        if !about.is_file() || about.len() > LARGEST_OLD_FILE {
            return Ok(None);
        }
        Ok(Self::read_dat(&std::fs::read(path).map_err(io)?))
    }

    fn read_gguf(path: &Path) -> Result<Self, ImatrixError> {
        let file = GgufFile::open(path)?;
        if file.get("general.type") != Some(Value::Text("imatrix")) {
            let problem = "is a GGUF file, but not of an importance matrix (general.type is not \
                           `imatrix`); give one that `llama-imatrix` wrote";
            return Err(unusable(path, problem.to_owned()));
        }
        let number = |key| match file.get(key) {
            Some(Value::Integer(number)) => u32::try_from(number).unwrap_or(0),
            _ => 0,
        };
        let mut found = Self {
            chunk_count: number("imatrix.chunk_count"),
            chunk_size: number("imatrix.chunk_size"),
            ..Self::default()
        };
        if let Some(Value::Array(datasets)) = file.get("imatrix.datasets") {
            let texts = datasets.iter().filter_map(|value| match value {
                Ok(Value::Text(text)) => Some(text.to_owned()),
                _ => None,
            });
            found.datasets = texts.collect();
        }
        for name in file.names() {
            let Some(tensor) = name.strip_suffix(".in_sum2") else { continue };
            let counts = format!("{tensor}.counts");
            let values = |name: &str| -> Result<Option<Vec<f32>>, ImatrixError> {
                let tensor = file.tensor(name).filter(|tensor| tensor.storage() == DType::F32);
                Ok(tensor.map(|tensor| tensor.try_to_vec_f32()).transpose()?)
            };
            let (Some(squares), Some(counts)) = (values(name)?, values(&counts)?) else {
                let problem = format!("`{counts}` is missing, or not in f32; compute it again");
                return Err(unusable(path, problem));
            };
            if counts.is_empty() || !squares.len().is_multiple_of(counts.len()) {
                let problem = format!("the sums of `{tensor}` are not as many for each matrix");
                return Err(unusable(path, problem));
            }
            found.tensors.insert(tensor.to_owned(), Sums { squares, counts });
        }
        Ok(found)
    }

    /// The older form: entries of name, chunks and values, then chunks of all and a data set.
    fn read_dat(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut found = Self::default();
        for _ in 0..u32_of(&mut rest)? {
            let name = text_of(&mut rest)?;
            let (chunks, len) = (u32_of(&mut rest)?.max(1) as f32, u32_of(&mut rest)?);
            let values = taken(&mut rest, (len as usize).checked_mul(4)?)?;
            let values = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let sums = Sums { squares: values.collect(), counts: vec![chunks] };
            found.tensors.insert(name, sums);
        }
        if let Some(chunks) = u32_of(&mut rest) {
            found.chunk_count = chunks;
            found.datasets.extend(text_of(&mut rest));
        }
        Some(found).filter(|found| !found.tensors.is_empty())
    }

    /// Writes it as a GGUF file, over one that is there.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), ImatrixError> {
        let io = |source| ImatrixError::Io { path: path.to_owned(), source };
        let metadata = [
            ("general.type".to_owned(), Meta::from("imatrix")),
            ("imatrix.datasets".to_owned(), Meta::Texts(self.datasets.clone())),
            ("imatrix.chunk_count".to_owned(), Meta::U32(self.chunk_count)),
            ("imatrix.chunk_size".to_owned(), Meta::U32(self.chunk_size)),
        ];
        let tensor = |name: &str, of: &str, shape: Vec<usize>| GgufTensor {
            name: format!("{name}.{of}"),
            shape,
            storage: DType::F32.into(),
        };
        let tensors = self.tensors.iter().flat_map(|(name, sums)| {
            let count = sums.counts.len();
            [
                tensor(name, "in_sum2", vec![count, sums.squares.len() / count.max(1)]),
                tensor(name, "counts", vec![count, 1]),
            ]
        });
        let plan = GgufPlan::new(&metadata, tensors.collect())?;
        let mut writer = GgufWriter::create(path, plan).map_err(io)?;
        let values = self.tensors.values().flat_map(|sums| [&sums.squares, &sums.counts]);
        for (i, values) in values.enumerate() {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer.write(i, 0, &bytes).map_err(io)?;
        }
        writer.sync().map_err(io)
    }

    /// The importance of the columns of each matrix of each tensor: mean squares, none where
    /// nothing is known. `path` is where it was read from.
    ///
    /// # Errors
    /// If a tensor has other columns here, or none is known.
    pub fn columns(&self, tensors: &[FormTensor], path: &Path) -> Result<Columns, ImatrixError> {
        let mut known = 0;
        let mut all = Vec::new();
        for tensor in tensors {
            let parts = tensor.roles().len();
            let Some(sums) = self.tensors.get(&tensor.name).filter(|_| tensor.is_matrix()) else {
                all.push(vec![Vec::new(); parts]);
                continue;
            };
            let cols = tensor.shape.last().copied().unwrap_or(0);
            let is_counted = sums.counts.len() == parts || sums.counts.len() == 1;
            if sums.squares.len() != parts * cols || !is_counted {
                return Err(unusable(
                    path,
                    format!(
                        "`{}` has {} sums of squares where the model has {parts} × {cols} columns; \
                         it is another model's",
                        tensor.name,
                        sums.squares.len()
                    ),
                ));
            }
            known += 1;
            let mean = |(i, squares): (usize, &[f32])| {
                let count = sums.counts[i.min(sums.counts.len() - 1)];
                let is_seen = count > 0.0;
                let mean = squares.iter().filter(|_| is_seen).map(|sum| sum / count);
                mean.collect::<Vec<f32>>()
            };
            let means: Vec<Vec<f32>> =
                sums.squares.chunks(cols.max(1)).enumerate().map(mean).collect();
            // Scales are searched for by such sums.
            if !means.iter().all(|of| of.iter().sum::<f32>().is_finite()) {
                return Err(unusable(
                    path,
                    format!(
                        "the mean squares of `{}` are too large to add up in f32; compute the \
                         importance again",
                        tensor.name
                    ),
                ));
            }
            all.push(means);
        }
        match known {
            0 => Err(unusable(
                path,
                "knows none of the model's tensors; it is another model's".to_owned(),
            )),
            _ => Ok(Columns(all)),
        }
    }
}

/// The importance of columns, by tensor and matrix of it, in the file's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns(pub(crate) Vec<Vec<Vec<f32>>>);

impl Columns {
    /// Whether nothing is known of any.
    pub fn is_empty(&self) -> bool {
        self.0.iter().flatten().all(Vec::is_empty)
    }

    /// That of a matrix; empty if nothing is known of it.
    pub fn of(&self, tensor: usize, part: usize) -> &[f32] {
        let of_tensor = self.0.get(tensor).and_then(|parts| parts.get(part));
        of_tensor.map_or(&[], Vec::as_slice)
    }
}

/// Bytes that a file without a head has at most: a float for each column of the matrices of a large
/// model is far less.
const LARGEST_OLD_FILE: u64 = 1 << 30;

fn unusable(path: &Path, problem: String) -> ImatrixError {
    ImatrixError::Unusable { path: path.to_owned(), problem }
}

fn taken<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (first, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(first)
}

fn u32_of(rest: &mut &[u8]) -> Option<u32> {
    let number = i32::from_le_bytes(*taken(rest, 4)?.first_chunk()?);
    u32::try_from(number).ok()
}

fn text_of(rest: &mut &[u8]) -> Option<String> {
    let len = u32_of(rest)? as usize;
    String::from_utf8(taken(rest, len)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(squares: &[f32], counts: &[f32]) -> Sums {
        Sums { squares: squares.to_vec(), counts: counts.to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let imatrix = Imatrix {
            tensors: [
                ("blk.0.ffn_up.weight".to_owned(), sums(&[1.0, 2.5, 0.0], &[7.0])),
                ("blk.0.ffn_up_exps.weight".to_owned(), sums(&[1.0, 2.0, 3.0, 4.0], &[2.0, 0.0])),
            ]
            .into(),
            datasets: vec!["text.jsonl".to_owned()],
            chunk_count: 3,
            chunk_size: 512,
        };
        imatrix.write(&path).unwrap();
        assert_eq!(Imatrix::read(&path).unwrap(), imatrix);
    }

    /// `llama-imatrix --output-format dat`: means times chunks.
    #[test]
    fn the_older_form_is_read() {
        let numbers = |numbers: [i32; 2]| numbers.map(i32::to_le_bytes).concat();
        let mut bytes = [&numbers([1, 4])[..], b"name", &numbers([5, 2])].concat();
        for x in [10.0f32, 2.5] {
            bytes.extend(x.to_le_bytes());
        }
        bytes.extend([&numbers([5, 3])[..], b"set"].concat());
        let found = Imatrix::read_dat(&bytes).unwrap();
        assert_eq!(found.tensors["name"], sums(&[10.0, 2.5], &[5.0]));
        assert_eq!((found.chunk_count, &found.datasets[..]), (5, &["set".to_owned()][..]));
        // However short it is cut, it is refused or has fewer entries, and nothing is allocated
        // that the file does not have.
        for len in 0..bytes.len() {
            Imatrix::read_dat(&bytes[..len]);
        }
        assert!(Imatrix::read_dat(&[0xff; 40]).is_none());
        let mut huge = bytes.clone();
        huge[16..20].copy_from_slice(&i32::MAX.to_le_bytes());
        assert!(Imatrix::read_dat(&huge).is_none());
    }
}
