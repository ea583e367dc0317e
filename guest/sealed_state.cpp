// SPDX-License-Identifier: Apache-2.0
#include "guest/sealed_state.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace migrationd::guest {

namespace {

constexpr int content_seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

}  // namespace

Result<UniqueFd> make_state(ByteView bytes) {
  UniqueFd fd(::memfd_create("migrationd-state", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return Error::from_errno("make a memfd for the state");
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return Error::from_errno("write the state to its memfd");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, content_seals | F_SEAL_SEAL) != 0) return Error::from_errno("seal the state");
  return fd;
}

Result<Bytes> read_state(int fd, std::uint64_t length) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return machine_error("the state is in no sealed memfd");
  if ((seals & content_seals) != content_seals)
    return machine_error("the state's memfd is not sealed against everything");
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) return Error::from_errno("look at the state's memfd");
  if (static_cast<std::uint64_t>(facts.st_size) != length)
    return machine_error(fmt::format("the state's memfd has {} bytes, not {}", facts.st_size, length));
  Bytes out(length);
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t count = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return Error::from_errno("read the state");
    done += static_cast<std::size_t>(count);
  }
  return out;
}

}  // namespace migrationd::guest
