//! CSV by RFC 4180: lines end with CR LF, a field with a comma, quote or line break is quoted.

use super::Column;

/// The items below a line of headings, with exact values.
pub(super) fn render<T>(columns: &[Column<T>], items: &[T]) -> String {
    let mut text = String::new();
    push_line(&mut text, columns.iter().map(|column| column.title.to_lowercase().replace(' ', "_")));
    for item in items {
        text.push_str(&render_line(columns, item));
    }
    text
}

/// One more line.
pub(super) fn render_line<T>(columns: &[Column<T>], item: &T) -> String {
    let mut text = String::new();
    push_line(&mut text, columns.iter().map(|column| (column.exact)(item)));
    text
}

fn push_line(text: &mut String, fields: impl Iterator<Item = String>) {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&quoted(&field));
    }
    text.push_str("\r\n");
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_as_rfc_4180_says() {
        let table = [
            ("", ""),
            ("8080/tcp", "8080/tcp"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
        ];
        for (field, written) in table {
            assert_eq!(quoted(field), written);
        }
    }

    #[test]
    fn every_line_has_every_column() {
        let columns =
            [Column::new("PORT", |n: &u16| n.to_string()), Column::new("LAST CONTACT", |_| "a,b".into())];
        assert_eq!(render(&columns, &[80, 81]), "port,last_contact\r\n80,\"a,b\"\r\n81,\"a,b\"\r\n");
    }
}
