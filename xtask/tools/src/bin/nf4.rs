//! `cargo xtask live files`: matrices as NF4, for comparison with bitsandbytes.
//!
//! usage: nf4 IN.safetensors OUT: writes the bytes of all matrices, one after another, by name.

use hone_tensor::safetensors::{SafeTensorsFile, load_as};
use hone_tensor::{Category, Device, Storage};
use std::error::Error;
use std::io::{BufWriter, Write as _};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &args[..] else { return Err("usage: nf4 IN.safetensors OUT".into()) };
    let nf4 = Storage::from_name("nf4").ok_or("the format has another name now")?;
    let file = SafeTensorsFile::open(Path::new(from))?;
    let mut out = BufWriter::new(std::fs::File::create(to)?);
    for name in file.names() {
        let Some(tensor) = file.tensor(&name)? else { continue };
        let packed = load_as(Device::host(), Category::Weights, &tensor, nf4)?;
        out.write_all(packed.bytes())?;
    }
    Ok(out.flush()?)
}
