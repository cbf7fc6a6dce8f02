//! The words of the mailbox operations in a history.

/// The prefix of the inboxes of the mailbox workloads; checkers keep their history in a compact form.
pub const PREFIX: &str = "mail-";
/// The name of a send whose body differs from that of the first send under its key.
pub const CHANGED: &str = "changed";

/// The selection and order of messages in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageView {
    /// The messages after a cursor, oldest first.
    Onward,
    /// The newest messages, newest first.
    Newest,
    /// The messages that are not marked as read, oldest first.
    Unread,
}

impl PageView {
    /// The name of a read with this view; `local` reads may be answered from the local state of a node.
    pub fn name(self, local: bool) -> Option<String> {
        let name = match (self, local) {
            (PageView::Onward, false) => return None,
            (PageView::Onward, true) => "local",
            (PageView::Newest, false) => "newest",
            (PageView::Newest, true) => "newest local",
            (PageView::Unread, _) => "unread",
        };
        Some(name.to_owned())
    }
}

/// The view that the name of a read stands for, and whether the read may be answered from local state.
pub fn page_view(name: Option<&str>) -> Option<(PageView, bool)> {
    Some(match name {
        None => (PageView::Onward, false),
        Some("local") => (PageView::Onward, true),
        Some("newest") => (PageView::Newest, false),
        Some("newest local") => (PageView::Newest, true),
        Some("unread") => (PageView::Unread, false),
        Some(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_says_what_it_was() {
        for kind in [
            (PageView::Onward, false),
            (PageView::Onward, true),
            (PageView::Newest, false),
            (PageView::Newest, true),
            (PageView::Unread, false),
        ] {
            assert_eq!(page_view(kind.0.name(kind.1).as_deref()), Some(kind));
        }
        assert_eq!(page_view(Some("else")), None);
    }
}
