//! Addresses: whole origins (scheme, host and port), where a redirect leads, the next page of a
//! listing.

use std::net::IpAddr;

/// Scheme, host and port, all of which must be equal before a token is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an `http://` or `https://` address; none if it is no such address. Read by the
    /// parser that requests go through, after refusing what that one would repair.
    pub(crate) fn of(url: &str) -> Option<Origin> {
        let (scheme, rest) = url.split_once("://")?;
        let plain = |c: char| c.is_ascii_graphic() && c != '\\';
        let known = ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s));
        if !known || !url.chars().all(plain) || rest.starts_with(['/', '?', '#', '@', ':']) {
            return None;
        }
        let url: reqwest::Url = url.parse().ok()?;
        let host = url.host_str()?.trim_end_matches('.').to_string();
        let port = url.port_or_known_default()?;
        Some(Origin { scheme: url.scheme().to_string(), host, port })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether the address is one of a machine's own network, which cloud services use for secrets.
    fn is_link_local(&self) -> bool {
        match self.host.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(IpAddr::V4(ip)) => ip.is_link_local(),
            Ok(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
            Err(_) => false,
        }
    }
}

/// Where a redirect from `base` leads.
///
/// # Errors
/// Why it is not followed.
pub(crate) fn redirect(base: &str, location: &str) -> Result<String, String> {
    let refused = |why: &str| Err(format!("the hub redirects to {why}; refused"));
    let location = location.split('#').next().unwrap_or_default();
    if location.is_empty() {
        return refused("nowhere");
    }
    let Some(from) = Origin::of(base) else { return refused("an unknown address") };
    let rest = base.split_once("://").map_or("", |(_, rest)| rest);
    let top = &base[..base.len() - rest.len() + rest.find(['/', '?']).unwrap_or(rest.len())];
    let path = base[top.len()..].split('?').next().unwrap_or_default();
    let scheme = location.split([':', '/', '?']).next().unwrap_or_default();
    let url = if location[scheme.len()..].starts_with(':') {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", from.scheme)
    } else if location.starts_with('/') {
        format!("{top}{location}")
    } else if location.starts_with('?') {
        format!("{top}{path}{location}")
    } else {
        format!("{top}{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder))
    };
    let Some(to) = Origin::of(&url) else {
        return refused("what is no http or https address");
    };
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') && to != from {
        return refused("an address with a user name");
    }
    if from.is_encrypted() && !to.is_encrypted() {
        return refused("an address without encryption");
    }
    if to.is_link_local() && !from.is_link_local() {
        return refused("an address of this machine's own network");
    }
    Ok(url)
}

/// The `rel="next"` address of Link headers; none on the last page.
///
/// # Errors
/// If a header cannot be understood, since it may name a page.
pub(crate) fn next_page(links: &[String]) -> Result<Option<String>, String> {
    let wrong = || "the hub's listing has a Link header that is not understood".to_string();
    let mut next = None;
    for header in links {
        let mut rest = header.trim_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let (address, behind) =
                rest.strip_prefix('<').and_then(|r| r.split_once('>')).ok_or_else(wrong)?;
            let (parameters, after) = behind.split_at(end_of(behind, ','));
            let is_next = parts(parameters).any(|p| {
                let (key, value) = p.split_once('=').unwrap_or((p, ""));
                let mut relations = value.trim().trim_matches('"').split_whitespace();
                key.trim().eq_ignore_ascii_case("rel")
                    && relations.any(|r| r.eq_ignore_ascii_case("next"))
            });
            if is_next && next.replace(address.to_string()).is_some_and(|n| n != address) {
                return Err("the hub's listing names two next pages".to_string());
            }
            rest = after.trim_start_matches([' ', '\t', ',']);
        }
    }
    Ok(next)
}

/// Where a separator stands, or the end. Inside of quotes it separates nothing.
fn end_of(text: &str, separator: char) -> usize {
    let mut quoted = false;
    let at = text.find(|c| {
        quoted ^= c == '"';
        c == separator && !quoted
    });
    at.unwrap_or(text.len())
}

/// The parts between semicolons.
fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (part, behind) = text.split_at_checked(end_of(text, ';'))?;
        text = behind.strip_prefix(';').unwrap_or_default();
        (!part.is_empty() || !behind.is_empty()).then_some(part)
    })
}

/// The address of the next page at `endpoint`. Mirrors pass on links that name the hub they mirror,
/// so only path and query of the link are used.
///
/// # Errors
/// If the link is not one of a listing.
pub(crate) fn page_at(endpoint: &str, link: &str) -> Result<String, String> {
    let path = match link.strip_prefix(endpoint).filter(|path| path.starts_with('/')) {
        Some(path) => path,
        None => match link.split_once("://") {
            Some((_, rest)) => &rest[rest.find('/').unwrap_or(rest.len())..],
            None => link,
        },
    };
    let (bare, _) = path.split_once('?').unwrap_or((path, ""));
    let listing = bare.starts_with("/api/") && bare.contains("/tree/");
    let page = format!("{endpoint}{path}");
    let same = Origin::of(&page).is_some_and(|o| Some(o) == Origin::of(endpoint));
    // `..` in all its spellings: what is asked for must be what was looked at.
    let asked = page.parse::<reqwest::Url>().map(|url| url.path().to_string());
    let unchanged = asked.is_ok_and(|path| path.ends_with(bare));
    if !same || !listing || !unchanged {
        return Err(format!(
            "the hub's listing goes on at {:?}, which is no listing; refused",
            shown(link)
        ));
    }
    Ok(page)
}

/// Checks the address of a storage server that the hub at `endpoint` names.
///
/// # Errors
/// Why nothing is sent there.
pub(crate) fn check_storage(endpoint: &str, url: &str) -> Result<(), String> {
    let refused = |why: &str| Err(format!("the hub stores large files at {why}; refused"));
    let (Some(hub), Some(storage)) = (Origin::of(endpoint), Origin::of(url)) else {
        return refused("what is no http or https address");
    };
    if hub.is_encrypted() && !storage.is_encrypted() {
        return refused("an address without encryption");
    }
    if storage.is_link_local() && !hub.is_link_local() {
        return refused("an address of this machine's own network");
    }
    Ok(())
}

/// `url` as it may be shown: without user name, password and query.
pub(crate) fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, tail) = rest.split_once('/').unwrap_or((rest, ""));
            let tail = tail.split('?').next().unwrap_or("");
            format!("{scheme}://{}/{tail}", host.rsplit('@').next().unwrap_or(host))
        }
        None => url.split('?').next().unwrap_or("").to_string(),
    }
}

/// A path, percent-encoded for an address.
pub(crate) fn encode(path: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(b as char)
            }
            b'/' if keep_slash => out.push('/'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let same = |a: &str, b: &str| Origin::of(a) == Origin::of(b);
        assert!(same("https://h/x", "https://H:443/y?z"));
        assert!(same("http://h:80", "http://h./"));
        for other in
            ["http://h/x", "https://h:8443/x", "https://h.evil.com/x", "https://h@evil.com/x"]
        {
            assert!(!same("https://h/x", other), "{other}");
        }
        for none in [
            "file:///etc/passwd",
            "ftp://h/x",
            "h/x",
            "",
            "http://",
            "http://h:x/",
            "http:///h/x",
            "http:/h/x",
            "http://h\\x",
            "http://a b/",
            "http://h:99999/",
        ] {
            assert_eq!(Origin::of(none), None, "{none}");
        }
    }

    #[test]
    fn redirects() {
        let base = "https://h/a/b?c=1";
        for (location, url) in [
            ("https://other:8/x?y", "https://other:8/x?y"),
            ("/x/y", "https://h/x/y"),
            ("y#part", "https://h/a/y"),
            ("?d", "https://h/a/b?d"),
            ("//cdn/x", "https://cdn/x"),
            ("x?u=http://z", "https://h/a/x?u=http://z"),
        ] {
            assert_eq!(redirect(base, location), Ok(url.to_string()), "{location}");
        }
        for (location, says) in [
            ("", "nowhere"),
            ("file:///etc/passwd", "no http or https"),
            ("ftp://h/x", "no http or https"),
            ("http://[::bad/ /", "no http or https"),
            ("https://h:443@evil/x", "a user name"),
            ("http://h/x", "without encryption"),
            ("https://169.254.169.254/latest", "own network"),
            ("https://0xa9fea9fe/latest", "own network"),
            ("https://[::ffff:169.254.169.254]/latest", "own network"),
            ("https://[fe80::1]/", "own network"),
            ("https://h\\@evil/x", "no http or https"),
            ("https:///evil/x", "no http or https"),
        ] {
            let e = redirect(base, location).unwrap_err();
            assert!(e.contains(says), "{location}: {e}");
        }
        assert_eq!(redirect("http://h", "/x"), Ok("http://h/x".to_string()));
    }

    #[test]
    fn next_pages() {
        let next =
            |links: &[&str]| next_page(&links.iter().map(|l| l.to_string()).collect::<Vec<_>>());
        let some = |url: &str| Ok(Some(url.to_string()));
        assert_eq!(next(&["<https://h/x?c=a>; rel=\"next\""]), some("https://h/x?c=a"));
        for links in [
            &["<a,b;c>; rel=next"][..],
            &["<a,b;c>;rel=\"NEXT\""],
            &["<x>; rel=\"prev\", <a,b;c>; REL = \"last next\" "],
            &["<x>; title=\"a, <b>; rel=next\"; rel=prev, <a,b;c>; rel=next"],
            &["<x>; rel=prev", "<a,b;c>; rel=next"],
            &["<a,b;c>; rel=next", "<a,b;c>; rel=next"],
        ] {
            assert_eq!(next(links), some("a,b;c"), "{links:?}");
        }
        for links in [&[][..], &[""], &["<x>; rel=\"prev\""], &["<x>"], &["<x>; rel=nextish"]] {
            assert_eq!(next(links), Ok(None), "{links:?}");
        }
        for links in [&["x; rel=next"][..], &["<x; rel=next"], &["<x>; rel=next, y"]] {
            assert!(next(links).unwrap_err().contains("not understood"), "{links:?}");
        }
        assert!(next(&["<x>; rel=next, <y>; rel=next"]).is_err());
    }

    #[test]
    fn pages() {
        let at = |link: &str| page_at("https://mirror/hf", link);
        let page = "/api/datasets/a/b/tree/0123?cursor=x%2F";
        let whole = Ok(format!("https://mirror/hf{page}"));
        assert_eq!(at(&format!("https://huggingface.co{page}")), whole);
        assert_eq!(at(&format!("https://mirror/hf{page}")), whole);
        assert_eq!(at(page), whole);
        for bad in [
            "https://evil/steal",
            "https://mirror/hf@evil/steal",
            "https://mirror/hf.evil.com/steal",
            "file:///etc/passwd",
            "https://mirror/hf/../../x",
            "https://mirror/hf/api/datasets/../tree/x",
            "https://mirror/hf/api/datasets/%2E%2e/tree/x",
            "https://mirror/hf/api/datasets/.%2e/tree/x",
            "/api/datasets/a/./tree/x",
            "/api/datasets/a\\..\\b/tree/x",
            "",
        ] {
            assert!(at(bad).is_err(), "{bad}: {:?}", at(bad));
        }
    }

    proptest::proptest! {
        /// Whatever a hub sends, the next page is at the endpoint, and a redirect leads to an http
        /// or https address, never from https to http.
        #[test]
        fn foreign_text(text in "\\PC{0,40}", url in "[a-z:/@.?#%0-9\\[\\] ]{0,40}") {
            for link in [&text, &url, &format!("https://{url}"), &format!("/api/x/tree/{url}")] {
                if let Ok(page) = page_at("https://mirror/hf", link) {
                    assert!(page.starts_with("https://mirror/hf/api/"), "{page}");
                    assert_eq!(Origin::of(&page), Origin::of("https://mirror"));
                }
                if let Ok(to) = redirect("https://h/a/b?c", link) {
                    assert!(Origin::of(&to).unwrap().is_encrypted(), "{to}");
                }
                let _ = next_page(&[link.to_string()]);
                assert!(!shown(&format!("https://a:b@{link}")).contains("a:b@"));
            }
        }
    }

    #[test]
    fn storage_servers() {
        let check = |url: &str| check_storage("https://hub", url);
        assert_eq!(check("https://cas.example:8443/x"), Ok(()));
        assert_eq!(check_storage("http://127.0.0.1:1", "http://127.0.0.1:2"), Ok(()));
        for (url, says) in [
            // hf-xet takes this for a folder of this machine.
            ("local:///home/me/.ssh", "no http or https"),
            ("memory://", "no http or https"),
            ("", "no http or https"),
            ("http://cas.example", "without encryption"),
            ("https://169.254.169.254", "own network"),
        ] {
            let e = check(url).unwrap_err();
            assert!(e.contains(says), "{url}: {e}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(encode("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(encode("SFT/a b/é.jsonl", true), "SFT/a%20b/%C3%A9.jsonl");
        assert_eq!(shown("https://me:secret@h/x?sig=1"), "https://h/x");
    }
}
