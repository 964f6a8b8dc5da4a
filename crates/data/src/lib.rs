//! From files of records to packed micro-batches of token ids.
//!
//! Reading (`source`, `reader`), record formats (`record`, `preference`), chat rendering with loss
//! spans (`chat`), tokenising (`tokenizer`), a record's rows (`rows`), the loaded rows (`load`,
//! `dataset`), packing (`packing`) and the resumable order of an epoch (`order`). Knows nothing of
//! models, devices or objectives.
//! Left out for now: columnar files, object stores, filters and de-duplication.

pub mod chat;
mod dataset;
mod error;
mod load;
pub mod order;
pub mod packing;
mod parallel;
pub mod preference;
pub mod random;
mod reader;
mod record;
mod rows;
mod source;
mod spec;
mod tokenizer;

pub use chat::{ChatTemplate, TextTemplate};
pub use dataset::{DataReport, Dataset, FileReport, Label, LengthBin, Row, Source};
pub use error::{DataError, FaultKind, Fix, RecordFault, Setting, Words};
pub use load::load;
pub use order::{Cursor, Order};
pub use packing::{IGNORE, MicroBatch, Unit, pack_in_order};
pub use spec::{Format, OnError, Overlong, RecordKind, RecordSpec, WeightedPath};
pub use tokenizer::{DecodeStream, Encoded, Tokenizer};
