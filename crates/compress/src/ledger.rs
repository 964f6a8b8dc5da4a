//! Numbers that take long to find, in an order that is always the same.

/// Keeps numbers that are found, so that a process which goes on for one that was ended need not
/// find them again: what is asked of it is asked in the same order.
pub struct Ledger<'a> {
    known: Vec<f64>,
    asked: usize,
    keep: &'a mut dyn FnMut(&[f64]),
}

impl<'a> Ledger<'a> {
    /// With what is known from before. `keep` is told of all numbers after each that was found.
    pub fn new(known: Vec<f64>, keep: &'a mut dyn FnMut(&[f64])) -> Self {
        Self { known, asked: 0, keep }
    }

    /// Whether the next number has to be found.
    pub(crate) fn is_unknown(&self) -> bool {
        self.asked >= self.known.len()
    }

    /// The next number.
    ///
    /// # Errors
    /// Those of `find`.
    pub(crate) fn next<E>(&mut self, find: impl FnOnce() -> Result<f64, E>) -> Result<f64, E> {
        if self.is_unknown() {
            self.known.push(find()?);
            (self.keep)(&self.known);
        }
        self.asked += 1;
        Ok(self.known[self.asked - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_found_again() {
        let mut kept = Vec::new();
        let mut keep = |numbers: &[f64]| kept = numbers.to_vec();
        let mut ledger = Ledger::new(vec![1.0], &mut keep);
        let known: Result<f64, ()> = ledger.next(|| unreachable!("it is known"));
        assert_eq!((known, ledger.is_unknown()), (Ok(1.0), true));
        assert_eq!(ledger.next(|| Err("no")), Err("no"));
        assert_eq!(ledger.next(|| Ok::<_, ()>(2.0)), Ok(2.0));
        assert_eq!(kept, [1.0, 2.0]);
    }
}
