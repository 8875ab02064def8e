//! Walking through a list that comes in pages.

use gk_model::query::Page;

use crate::error::ClientError;

/// All items of a list, each page fetched when the one before is used up.
///
/// `fetch` gets the cursor of the page to fetch, none for the first. After an error the walk is over.
///
/// ```no_run
/// # use gk_client::{Client, all_pages};
/// # use gk_model::query::PortQuery;
/// # fn example(client: &Client) -> Result<(), gk_client::ClientError> {
/// for port in all_pages(|cursor| client.list_ports(&PortQuery { cursor, ..PortQuery::default() })) {
///     println!("{}", port?.port);
/// }
/// # Ok(())
/// # }
/// ```
pub fn all_pages<T, F>(fetch: F) -> impl Iterator<Item = Result<T, ClientError>>
where
    F: FnMut(Option<String>) -> Result<Page<T>, ClientError>,
{
    Walk { fetch, page: Vec::new().into_iter(), next: Next::First }
}

struct Walk<T, F> {
    fetch: F,
    page: std::vec::IntoIter<T>,
    next: Next,
}

enum Next {
    First,
    Cursor(String),
    End,
}

impl<T, F: FnMut(Option<String>) -> Result<Page<T>, ClientError>> Iterator for Walk<T, F> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.page.next() {
                return Some(Ok(item));
            }
            let cursor = match std::mem::replace(&mut self.next, Next::End) {
                Next::First => None,
                Next::Cursor(cursor) => Some(cursor),
                Next::End => return None,
            };
            match (self.fetch)(cursor) {
                Ok(page) => {
                    self.page = page.items.into_iter();
                    self.next = page.next.map_or(Next::End, Next::Cursor);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_fetched_one_by_one_and_empty_ones_are_no_end() {
        let mut asked = Vec::new();
        let mut fetch = |cursor: Option<String>| {
            asked.push(cursor.clone());
            let (items, next) = match cursor.as_deref() {
                None => (vec![1, 2], Some("a")),
                Some("a") => (vec![], Some("b")),
                _ => (vec![3], None),
            };
            Ok(Page { items, next: next.map(str::to_owned) })
        };
        assert_eq!(all_pages(&mut fetch).take(2).map(Result::unwrap).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(all_pages(&mut fetch).map(Result::unwrap).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(asked.len(), 1 + 3, "the first walk stopped before its second page");
    }
}
