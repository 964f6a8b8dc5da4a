//! hone
fn main(){}
