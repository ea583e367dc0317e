// SPDX-License-Identifier: Apache-2.0
#include "transports/descriptor_channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <cstring>

namespace migrationd::transports {

namespace {

constexpr std::size_t max_iovecs = IOV_MAX;
// The default upper bound for unprivileged users (fs.pipe-max-size); fewer wake-ups per byte than 64 KiB.
constexpr int pipe_bytes = 1 << 20;

void set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

// Within one host there is no delay to fill, only a balance to keep. Too small (the default of unix sockets, 208 KiB),
// and both sides wait for each other all the time, at worst in turns on one CPU: 1.6 GiB/s where 2.1 were seen. Too
// large (the window that TCP tunes for itself), and every byte goes to memory and back on its way: a quarter more CPU
// time. Anything else is left to the kernel's tuning.
constexpr int local_buffer_bytes = 1 << 20;

bool is_local(const sockaddr_storage& address) noexcept {
  if (address.ss_family == AF_UNIX) return true;
  if (address.ss_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof v4);
    return (ntohl(v4.sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
  }
  if (address.ss_family != AF_INET6) return false;
  sockaddr_in6 v6{};
  std::memcpy(&v6, &address, sizeof v6);
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
}

void tune_local(int fd) noexcept {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (::getpeername(fd, static_cast<sockaddr*>(static_cast<void*>(&peer)), &size) != 0 || !is_local(peer)) return;
  // Refusals do no harm: it is only slower.
  ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &local_buffer_bytes, sizeof local_buffer_bytes);
  ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &local_buffer_bytes, sizeof local_buffer_bytes);
}

void grow_pipe(int fd) {
  const int now = ::fcntl(fd, F_GETPIPE_SZ);
  // Refused to users over their share of pipe pages; then it stays as it is.
  if (now > 0 && now < pipe_bytes) ::fcntl(fd, F_SETPIPE_SZ, pipe_bytes);
}

// Walks an iovec array in pieces the kernel takes, and stands in the middle of an entry after a short write.
class IovCursor {
 public:
  IovCursor(std::span<const iovec> all, std::vector<iovec>& scratch) : rest_(all), scratch_(scratch) { skip_empty(); }

  bool done() const noexcept { return rest_.empty(); }
  std::span<const iovec> chunk() {
    const auto plain = rest_.first(std::min(rest_.size(), max_iovecs));
    if (offset_ == 0) return plain;
    scratch_.assign(plain.begin(), plain.end());
    scratch_[0].iov_base = static_cast<std::byte*>(scratch_[0].iov_base) + offset_;
    scratch_[0].iov_len -= offset_;
    return scratch_;
  }
  void advance(std::size_t count) noexcept {
    offset_ += count;
    while (!rest_.empty() && offset_ >= rest_[0].iov_len) {
      offset_ -= rest_[0].iov_len;
      rest_ = rest_.subspan(1);
    }
    if (offset_ == 0) skip_empty();
  }

 private:
  void skip_empty() noexcept {
    while (!rest_.empty() && rest_[0].iov_len == 0) rest_ = rest_.subspan(1);
  }

  std::span<const iovec> rest_;
  std::vector<iovec>& scratch_;
  std::size_t offset_ = 0;
};

// poll just said that PIPE_BUF bytes fit (pipe(7)); more could block.
ssize_t write_pipe_buf(int fd, std::span<const iovec> chunk) {
  iovec some[16];
  int count = 0;
  std::size_t room = PIPE_BUF;
  for (const iovec& piece : chunk) {
    if (count == 16 || room == 0) break;
    some[count++] = {piece.iov_base, std::min(piece.iov_len, room)};
    room -= some[count - 1].iov_len;
  }
  return ::writev(fd, some, count);
}

}  // namespace

Result<DescriptorKind> kind_of(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return Error::from_errno("look at the descriptor");
  switch (about.st_mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK:
      return DescriptorKind::file;
    case S_IFIFO:
    case S_IFCHR:
      return DescriptorKind::pipe;
    case S_IFSOCK:
      break;
    default:
      return plan_error("the descriptor is neither a socket, a pipe nor a file");
  }
  int type = 0;
  int listening = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) return Error::from_errno("look at the socket");
  size = sizeof listening;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0) listening = 0;
  if (type != SOCK_STREAM || listening != 0) return plan_error("the descriptor is not a connected stream socket");
  return DescriptorKind::socket;
}

DescriptorChannel::DescriptorChannel(UniqueFd fd, DescriptorKind kind, StopSource& stop, std::string_view description)
    : stop_(stop), fd_(std::move(fd)), description_(printable(description, 256)), kind_(kind) {
  if (kind_ == DescriptorKind::file) write_mode_ = WriteMode::blocking;
  if (kind_ == DescriptorKind::pipe) prepare_pipe();
  if (kind_ == DescriptorKind::socket) tune_local(fd_.get());
}

DescriptorChannel::DescriptorChannel(UniqueFd read_end, UniqueFd write_end, StopSource& stop,
                                     std::string_view description)
    : stop_(stop),
      fd_(std::move(read_end)),
      write_fd_(std::move(write_end)),
      description_(printable(description, 256)),
      kind_(DescriptorKind::pipe),
      write_mode_(WriteMode::nonblocking),
      two_pipes_(true) {
  for (const int fd : {fd_.get(), write_fd_.get()}) {
    set_nonblocking(fd);
    grow_pipe(fd);
  }
}

void DescriptorChannel::prepare_pipe() {
  read_polls_first_ = true;
  write_mode_ = WriteMode::nowait;
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  struct stat about {};
  if (flags < 0 || ::fstat(fd_.get(), &about) != 0 || !S_ISFIFO(about.st_mode)) return;
  grow_pipe(fd_.get());
  const std::string path = fmt::format("/proc/self/fd/{}", fd_.get());
  UniqueFd own(::open(path.c_str(), (flags & O_ACCMODE) | O_NONBLOCK | O_CLOEXEC));
  if (!own) return;
  // The old description is closed: the pipe's reader still sees the end exactly when we are done.
  fd_ = std::move(own);
  write_mode_ = WriteMode::nonblocking;
  read_polls_first_ = false;
}

void DescriptorChannel::force(PipeTactic tactic) noexcept {
  write_mode_ = tactic == PipeTactic::nowait ? WriteMode::nowait : WriteMode::after_poll;
  read_polls_first_ = true;
  ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) & ~O_NONBLOCK);
}

Error DescriptorChannel::failed(const char* verb, const char* preposition) const {
  const int err = errno;
  const char* what = kind_ == DescriptorKind::socket ? "socket" : two_pipes_ ? "command" : "file";
  return Error::from_errno(fmt::format("Unable to {} {} {}", verb, preposition, what), err);
}

Result<void> DescriptorChannel::wait_for(int fd, short events) const {
  pollfd polled[2] = {{fd, events, 0}, {stop_.fd(), POLLIN, 0}};
  while (true) {
    const int ready = ::poll(polled, 2, -1);
    if (stop_.requested()) return cancelled_error();
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the channel");
  }
}

Result<std::size_t> DescriptorChannel::read(std::span<const iovec> into) {
  bool polled = !read_polls_first_;
  while (true) {
    if (stop_.requested()) return cancelled_error();
    if (!polled) MD_CHECK(wait_for(fd_.get(), POLLIN));
    ssize_t got = 0;
    if (kind_ == DescriptorKind::socket) {
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(into.data());
      message.msg_iovlen = into.size();
      got = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
    } else {
      got = ::readv(fd_.get(), into.data(), static_cast<int>(into.size()));
    }
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      MD_CHECK(wait_for(fd_.get(), POLLIN));
      polled = true;
    } else if (errno != EINTR) {
      return failed("read", "from");
    }
  }
}

ssize_t DescriptorChannel::write_once(int fd, std::span<const iovec> chunk) {
  const int count = static_cast<int>(chunk.size());
  switch (write_mode_) {
    case WriteMode::socket: {
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(chunk.data());
      message.msg_iovlen = chunk.size();
      return ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    case WriteMode::nowait: {
      const ssize_t sent = ::pwritev2(fd, chunk.data(), count, -1, RWF_NOWAIT);
      if (sent >= 0 || errno != EOPNOTSUPP) return sent;
      write_mode_ = WriteMode::after_poll;
      errno = EAGAIN;
      return -1;
    }
    case WriteMode::after_poll:
      return write_pipe_buf(fd, chunk);
    case WriteMode::nonblocking:
    case WriteMode::blocking:
      break;
  }
  return ::writev(fd, chunk.data(), count);
}

Result<void> DescriptorChannel::write(std::span<const iovec> from) {
  const int fd = write_end().get();
  IovCursor cursor(from, scratch_);
  while (!cursor.done()) {
    if (stop_.requested()) return cancelled_error();
    if (write_mode_ == WriteMode::after_poll) MD_CHECK(wait_for(fd, POLLOUT));
    const ssize_t sent = write_once(fd, cursor.chunk());
    if (sent >= 0) {
      cursor.advance(static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      MD_CHECK(wait_for(fd, POLLOUT));
    } else if (errno != EINTR) {
      return failed("write", "to");
    }
  }
  return {};
}

void DescriptorChannel::shutdown() noexcept {
  if (kind_ == DescriptorKind::socket) ::shutdown(fd_.get(), SHUT_RDWR);
}

Result<void> DescriptorChannel::finish_writing() {
  if (kind_ == DescriptorKind::pipe) {
    write_end().reset();
    return {};
  }
  // A peer that has gone already is no failure of the end: what it got is told by its answers.
  if (kind_ == DescriptorKind::socket && ::shutdown(fd_.get(), SHUT_WR) != 0 && errno != ENOTCONN)
    return Error::from_errno("Unable to end the socket's stream");
  return {};
}

Result<void> DescriptorChannel::sync_to_disk() {
  if (!is_file()) return {};
  if (::fsync(fd_.get()) != 0) return Error::from_errno("Unable to sync the file");
  if (directory_ && ::fsync(directory_.get()) != 0) return Error::from_errno("Unable to sync the file's directory");
  return {};
}

}  // namespace migrationd::transports
