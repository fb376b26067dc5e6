//! A page: headings, facts, tables, drawings. Whatever is put in is text and comes out escaped.

use std::fmt::Write as _;

/// Looks of the page; light, dark and on paper.
const STYLE: &str = include_str!("style.css");

/// A page being written.
#[derive(Debug, Default)]
pub struct Page {
    body: String,
}

/// How a row or tile is set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Not at all.
    Plain,
    /// All is well.
    Good,
    /// Something is not.
    Bad,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

impl Page {
    /// The first thing to read.
    pub fn headline(&mut self, kicker: &str, sentence: &str) {
        // A large figure and its unit stay on one line.
        let sentence = sentence.replace(" %", "\u{a0}%");
        let (kicker, sentence) = (escape(kicker), escape(&sentence));
        let _ = writeln!(self.body, "<header><p class=\"kicker\">{kicker}</p><h1>{sentence}</h1></header>");
    }

    /// A heading of a part.
    pub fn heading(&mut self, words: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(words));
    }

    /// Running text.
    pub fn paragraph(&mut self, words: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(words));
    }

    /// Text to be noticed: a reason not to trust what follows.
    pub fn warning(&mut self, words: &str) {
        let _ = writeln!(self.body, "<p class=\"warning\">{}</p>", escape(words));
    }

    /// A command to be copied.
    pub fn command(&mut self, line: &str) {
        let _ = writeln!(self.body, "<pre><code>{}</code></pre>", escape(line));
    }

    /// Large figures side by side: name, figure, note.
    pub fn tiles(&mut self, tiles: &[(&str, String, String, Tone)]) {
        self.body.push_str("<div class=\"tiles\">");
        for (name, figure, note, tone) in tiles {
            let _ = write!(
                self.body,
                "<div class=\"tile {}\"><p class=\"name\">{}</p><p class=\"figure\">{}</p><p class=\"note\">{}</p></div>",
                tone.class(),
                escape(name),
                escape(figure),
                escape(note)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Names and what they are; rows without a value are left out.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        self.body.push_str("<table class=\"facts\">");
        for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = write!(self.body, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
        }
        self.body.push_str("</table>\n");
    }

    /// A table of figures; the first column names its row.
    pub fn table(&mut self, head: &[&str], rows: &[(Tone, Vec<String>)]) {
        self.body.push_str("<div class=\"wide\"><table class=\"figures\"><thead><tr>");
        for name in head {
            let _ = write!(self.body, "<th>{}</th>", escape(name));
        }
        self.body.push_str("</tr></thead><tbody>");
        for (tone, cells) in rows {
            let _ = write!(self.body, "<tr class=\"{}\">", tone.class());
            for cell in cells {
                let _ = write!(self.body, "<td>{}</td>", escape(cell));
            }
            self.body.push_str("</tr>");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// Drawings side by side where there is room.
    pub fn drawings(&mut self, drawings: &[String]) {
        self.body.push_str("<div class=\"drawings\">");
        for svg in drawings {
            let _ = write!(self.body, "<figure>{svg}</figure>");
        }
        self.body.push_str("</div>\n");
    }

    /// The whole file.
    pub fn finish(self, title: &str) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
            escape(title),
            self.body
        )
    }
}

/// Text for HTML and SVG, in elements and in quoted attributes. What XML forbids becomes a mark.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\t' | '\n' => safe.push(letter),
            letter if letter.is_control() => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: markup in any text stays text, in every part of a page.
    /// Method: the same hostile words everywhere; the page holds none of its tags.
    #[test]
    fn every_part_of_a_page_is_escaped() {
        let hostile = "</title><script>x</script><img onerror='y' src=\"z\">&\u{0}";
        let mut page = Page::default();
        page.headline(hostile, hostile);
        page.heading(hostile);
        page.paragraph(hostile);
        page.warning(hostile);
        page.command(hostile);
        page.tiles(&[(hostile, hostile.to_owned(), hostile.to_owned(), Tone::Plain)]);
        page.facts(&[(hostile, hostile.to_owned()), ("left out", String::new())]);
        page.table(&[hostile], &[(Tone::Bad, vec![hostile.to_owned()])]);
        let file = page.finish(hostile);
        for tag in ["<script", "<img", "onerror='", "\u{0}", "left out"] {
            assert!(!file.contains(tag), "{tag}: {file}");
        }
        assert_eq!(file.matches("</title>").count(), 1);
    }

    /// Goal: escaping is that of HTML and XML. Method: the five letters that matter, and controls.
    #[test]
    fn the_five_letters_are_escaped() {
        assert_eq!(escape("a<b>&\"'c"), "a&lt;b&gt;&amp;&quot;&#39;c");
        assert_eq!(escape("tab\tline\nbell\u{7}"), "tab\tline\nbell\u{fffd}");
        assert_eq!(escape("Grüße ≤ 20 µs"), "Grüße ≤ 20 µs");
    }

    /// Goal: a page asks for nothing from elsewhere. Method: no addresses, no scripts, no imports.
    #[test]
    fn a_page_needs_no_network() {
        let file = Page::default().finish("empty");
        for foreign in ["http:", "https:", "<script", "@import", "url(", "<link"] {
            assert!(!file.contains(foreign), "{foreign}");
        }
    }
}
