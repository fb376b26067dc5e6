//! What a sans-IO core wants done, in order.

use std::collections::VecDeque;

/// A queue of outputs. Empty it keeps no memory: there is one in each leg and flow of each call, and
/// most of them want nothing most of the time.
#[derive(Debug)]
pub struct Outputs<T>(VecDeque<T>);

impl<T> Default for Outputs<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Outputs<T> {
    /// Adds one at the end.
    pub fn push(&mut self, output: T) {
        self.0.push_back(output);
    }

    /// Takes the first one.
    pub fn pop(&mut self) -> Option<T> {
        let output = self.0.pop_front();
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        output
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: outputs come in order, and a drained queue has given its memory back. Method: a hundred.
    #[test]
    fn a_drained_queue_keeps_no_memory() {
        let mut outputs = Outputs::default();
        (0..100).for_each(|number| outputs.push(number));
        assert!(std::iter::from_fn(|| outputs.pop()).eq(0..100));
        assert!(outputs.is_empty());
        assert_eq!(outputs.0.capacity(), 0);
    }
}
