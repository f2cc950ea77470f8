//! HTTP/2 told from HTTP/1 by its first bytes, which are then read again by whichever it is.
//!
//! What one read brings is kept, so a connection costs no system call more than it did; once that is
//! read, a branch.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client that knows that we speak HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A usual request's head.
const FIRST_READ_BYTES: usize = 4 << 10;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Reads until the protocol is known. HTTP/1 is whatever is not the whole preface.
pub(super) async fn sniff<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<(Version, Replayed<S>)> {
    let mut first = BytesMut::with_capacity(FIRST_READ_BYTES);
    loop {
        let is_end = stream.read_buf(&mut first).await? == 0;
        let compared = first.len().min(PREFACE.len());
        let version = if first[..compared] != PREFACE[..compared] || is_end {
            Version::Http1
        } else if compared == PREFACE.len() {
            Version::Http2
        } else {
            continue;
        };
        return Ok((version, Replayed { first, stream }));
    }
}

/// A stream whose first bytes were read already and come again.
pub(super) struct Replayed<S> {
    first: BytesMut,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            self.first = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    #[test]
    fn the_preface_alone_is_http_2_and_nothing_is_lost() {
        for (sent, expected) in [
            (
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04"[..],
                Version::Http2,
            ),
            (b"PRI * HTTP/2.0\r\n\r\n", Version::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Version::Http1),
            (b"POST / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"P", Version::Http1),
            (b"", Version::Http1),
        ] {
            runtime().block_on(async {
                let (version, mut replayed) = sniff(sent).await.unwrap();
                assert_eq!(version, expected, "{sent:?}");
                let mut read = Vec::new();
                replayed.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, sent);
            });
        }
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let (mut ours, theirs) = tokio::io::duplex(1);
        let sent = [PREFACE, b"rest"].concat();
        runtime().block_on(async {
            let write = async {
                tokio::io::AsyncWriteExt::write_all(&mut ours, &sent)
                    .await
                    .unwrap();
                drop(ours);
            };
            let read = async {
                let (version, mut replayed) = sniff(theirs).await.unwrap();
                assert_eq!(version, Version::Http2);
                let mut read = Vec::new();
                replayed.read_to_end(&mut read).await.unwrap();
                assert_eq!(read, sent);
            };
            tokio::join!(write, read);
        });
    }
}
