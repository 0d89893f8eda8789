//! What of an object is left out, in words, for whoever wrote it. Pure.

/// Few enough for one line: ten thousand bad endpoints are as clear from five.
const MOST: usize = 5;

/// Remarks on one object.
#[derive(Debug, Default)]
pub struct Notes {
    texts: Vec<String>,
    more: usize,
}

impl Notes {
    /// Adds a remark. It is made only where it is wanted.
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        if self.texts.len() < MOST { self.texts.push(text()) } else { self.more += 1 }
    }

    /// All in one; `None` when there is nothing to say.
    pub fn message(&self) -> Option<String> {
        let more = if self.more > 0 { format!("; and {} more", self.more) } else { String::new() };
        (!self.texts.is_empty()).then(|| format!("left out: {}{more}", self.texts.join("; ")))
    }
}
