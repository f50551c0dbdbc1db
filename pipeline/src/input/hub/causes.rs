//! Why a request got no answer: in words, and whether another attempt can help.

/// Whether another attempt cannot succeed either.
pub(crate) fn is_permanent(e: &ureq::Error) -> bool {
    use ureq::Error as E;
    match e {
        E::BadUri(_) | E::Http(_) | E::LargeResponseHeader(..) | E::InvalidProxyUrl => true,
        E::RequireHttpsOnly(_) | E::TlsRequired | E::Tls(_) => true,
        // How a certificate that is not trusted, or an answer without TLS, is reported.
        E::Io(e) => e.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// The cause of a failed request, without addresses: a signed address is a secret.
pub(crate) fn describe(e: &ureq::Error) -> String {
    match e {
        // The operating system's own words hold no address.
        ureq::Error::Io(e) if e.raw_os_error().is_some() => e.to_string(),
        ureq::Error::Io(e) => e.kind().to_string(),
        ureq::Error::Timeout(_) => "timed out".to_string(),
        ureq::Error::HostNotFound => "host not found".to_string(),
        ureq::Error::ConnectionFailed => "connection failed".to_string(),
        ureq::Error::LargeResponseHeader(..) => "its header is too long".to_string(),
        ureq::Error::Tls(_) | ureq::Error::TlsRequired => "no encryption".to_string(),
        _ => "protocol error".to_string(),
    }
}
