//! Files of environment variables: `NAME='VALUE'`, as a POSIX shell reads them (KEP-3721). Pure.
//!
//! Values stand in single quotes and may have several lines; whitespace before a value means an empty one, as in bash.
//! Source: `pkg/kubelet/util/env` of k8s.io/kubernetes v1.37.

/// What is wrong with a file, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid environment variable format at line {line}: {what}")]
pub(super) struct FileError {
    line: usize,
    what: &'static str,
}

const BLANK: [char; 2] = [' ', '\t'];

/// The first value of a key; what comes after it is not read.
pub(super) fn value(text: &str, key: &str) -> Result<Option<String>, FileError> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((line, content)) = lines.next() {
        let fail = |what| FileError { line, what };
        let content = content.trim_start_matches(BLANK);
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (name, rest) = content.split_once('=').ok_or_else(|| fail("missing '='"))?;
        if name.trim_end_matches(BLANK).is_empty() {
            return Err(fail("empty variable name"));
        }
        if name.ends_with(BLANK) {
            return Err(fail("whitespace before '=' is not allowed"));
        }
        if rest.starts_with(BLANK) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let quoted = rest.strip_prefix('\'').ok_or_else(|| fail("value must be enclosed in single quotes"))?;
        let value = until_quote(quoted, line, &mut lines)?;
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// What stands before the closing quote, which may be in a later line.
fn until_quote<'a>(
    first: &'a str,
    line: usize,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
) -> Result<String, FileError> {
    let (mut value, mut rest, mut at) = (String::new(), first, line);
    loop {
        if let Some((before, after)) = rest.split_once('\'') {
            let after = after.trim_start_matches(BLANK);
            if !after.is_empty() && !after.starts_with('#') {
                return Err(FileError { line: at, what: "unexpected content after closing quote" });
            }
            value.push_str(before);
            return Ok(value);
        }
        value.push_str(rest);
        value.push('\n');
        (at, rest) = lines.next().ok_or(FileError { line, what: "unclosed single quote" })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_a_shell_would() {
        let text = "# a comment\n\n  A='1'\nB='two words' # why\nC='line 1\nline 2'\nD= 'not this'\nE=''\nA='again'\n";
        let table = [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("line 1\nline 2")),
            ("D", Some("")),
            ("E", Some("")),
            ("F", None),
        ];
        for (key, expected) in table {
            assert_eq!(value(text, key).unwrap().as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn what_is_not_in_that_form_is_refused_with_its_line() {
        let table = [
            ("\nA", 2, "missing '='"),
            ("='1'", 1, "empty variable name"),
            ("A ='1'", 1, "whitespace before '=' is not allowed"),
            ("A=1", 1, "value must be enclosed in single quotes"),
            ("A=\"1\"", 1, "value must be enclosed in single quotes"),
            ("B='1' 2", 1, "unexpected content after closing quote"),
            ("B='1\n2' 3", 2, "unexpected content after closing quote"),
            ("B='1\n2", 1, "unclosed single quote"),
        ];
        for (text, line, what) in table {
            assert_eq!(value(text, "Z"), Err(FileError { line, what }), "{text:?}");
        }
        assert_eq!(value("A='1'\nrubbish", "A"), Ok(Some("1".to_owned())), "what comes after is not read");
    }
}
