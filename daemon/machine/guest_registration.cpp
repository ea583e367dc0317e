// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/guest_registration.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>

namespace migrationd {
namespace {

bool has_bitmap(guest::Tracking tracking) noexcept {
  return tracking == guest::Tracking::bitmap || tracking == guest::Tracking::both;
}

template <class Body>
GuestRegistration::Answer answer_of(const Body& body, UniqueFd fd = {}) {
  ByteWriter out;
  guest::encode(body, out);
  return {std::move(out).take(), std::move(fd)};
}

}  // namespace

Result<GuestRegistration::Answer> GuestRegistration::take(guest::Type type, ByteView body, std::vector<UniqueFd> fds) {
  if (type == guest::Type::hello) return hello(body);
  if (!greeted_) return wire_error(fmt::format("{} before HELLO", guest::name_of(static_cast<std::uint16_t>(type))));
  if (type == guest::Type::add_block) return add_block(body, std::move(fds));
  if (type == guest::Type::new_block) return new_block(body);
  if (type == guest::Type::add_device) return add_device(body);
  return wire_error(fmt::format("{} before READY", guest::name_of(static_cast<std::uint16_t>(type))));
}

Result<GuestRegistration::Answer> GuestRegistration::hello(ByteView body) {
  if (greeted_) return wire_error("HELLO twice");
  MD_TRY(guest_.hello, guest::decode<guest::Hello>(body));
  const guest::Hello& hello = guest_.hello;
  if (hello.lowest > guest::protocol_version || hello.highest < guest::protocol_version) {
    return machine_error(fmt::format("this daemon speaks version {} of the guest protocol, the guest {} to {}",
                                     guest::protocol_version, hello.lowest, hello.highest));
  }
  greeted_ = true;
  UniqueFd device;
  if (hello.wants_device) device.reset(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return answer_of(guest::Welcome{guest::protocol_version, daemon_, static_cast<std::uint32_t>(deadline_.count())},
                   std::move(device));
}

// Two blocks of one memory would be written one over the other.
Result<void> GuestRegistration::check_place(const guest::AddBlock& block, int fd) {
  for (std::size_t i = 0; i < guest_.ram.size(); ++i) {
    const auto other = reinterpret_cast<std::uint64_t>(guest_.addresses[i]);
    if (block.address < other + guest_.ram.at(i).length() && other < block.address + block.length)
      return machine_error(fmt::format("its addresses overlap with those of block '{}'", guest_.ram.at(i).name()));
  }
  struct stat status {};
  if (::fstat(fd, &status) != 0) return Error::from_errno("look at the memfd");
  const std::pair file{status.st_dev, status.st_ino};
  if (std::find(files_.begin(), files_.end(), file) != files_.end())
    return machine_error("its memfd is that of another block already");
  files_.push_back(file);
  return {};
}

Result<GuestRegistration::Answer> GuestRegistration::add_block(ByteView body, std::vector<UniqueFd> fds) {
  MD_TRY(const auto block, guest::decode<guest::AddBlock>(body));
  const std::size_t fds_due = guest::fds_of(block);
  if (fds.size() != fds_due)
    return wire_error(fmt::format("ADD_BLOCK with {} descriptors, its tracking has {}", fds.size(), fds_due));
  if (guest_.ram.size() >= guest::guest_blocks)
    return Error(ErrorKind::limit, fmt::format("more than {} blocks of memory", guest::guest_blocks));
  if (guest_.ram.find(block.name))
    return machine_error(fmt::format("block '{}': there are two of that name", printable(block.name)));
  const std::string who = fmt::format("block '{}'", printable(block.name));
  std::unique_ptr<ram::SharedBitmap> bitmap;
  if (has_bitmap(block.tracking)) {
    auto adopted = ram::SharedBitmap::adopt(std::move(fds[1]), block.length / ram::page_size);
    if (!adopted) return std::move(adopted).error().with(who + ": bitmap");
    bitmap = std::move(*adopted);
  }
  const int fd = fds[0].get();
  MD_TRY(auto adopted, ram::RamBlock::adopt(block.name, std::move(fds[0]), block.length, block.page_size));
  auto place = check_place(block, fd);
  if (!place) return std::move(place).error().with(who);
  auto added = guest_.ram.add(std::move(adopted));
  if (!added) {
    files_.pop_back();
    return std::move(added).error();
  }
  guest_.addresses.push_back(reinterpret_cast<std::byte*>(block.address));
  guest_.tracking.push_back(block.tracking);
  guest_.bitmaps.push_back(std::move(bitmap));
  return Answer{};
}

// The memory is the guest's, who maps it and says so by ADD_BLOCK; nothing is kept here.
Result<GuestRegistration::Answer> GuestRegistration::new_block(ByteView body) {
  MD_TRY(const auto wanted, guest::decode<guest::NewBlock>(body));
  if (blocks_made_ >= guest::guest_blocks)
    return Error(ErrorKind::limit, fmt::format("more than {} blocks of memory", guest::guest_blocks));
  MD_TRY(const auto block, ram::RamBlock::create(wanted.name, wanted.length, wanted.page_size));
  ++blocks_made_;
  UniqueFd fd(::fcntl(block->fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd) return Error::from_errno("hand the memfd over");
  return Answer{{}, std::move(fd)};
}

Result<GuestRegistration::Answer> GuestRegistration::add_device(ByteView body) {
  MD_TRY(auto device, guest::decode<guest::AddDevice>(body));
  if (guest_.devices.size() >= guest::guest_devices)
    return Error(ErrorKind::limit, fmt::format("more than {} devices", guest::guest_devices));
  // The daemon's own sections of the stream.
  if (device.id == "ram" || device.id == "globalstate")
    return machine_error(fmt::format("device '{}': that name is taken by the stream itself", device.id));
  const auto same = [&](const guest::AddDevice& other) {
    return other.id == device.id && other.instance == device.instance;
  };
  if (std::any_of(guest_.devices.begin(), guest_.devices.end(), same))
    return machine_error(fmt::format("device '{}' (instance {}) is there already", device.id, device.instance));
  guest_.devices.push_back(std::move(device));
  return Answer{};
}

Result<RegisteredGuest> GuestRegistration::ready(ByteView body) {
  if (!greeted_) return wire_error("READY before HELLO");
  MD_TRY(guest_.ready, guest::decode<guest::Ready>(body));
  if (guest_.ram.size() == 0) return machine_error("a guest without memory cannot be migrated");
  greeted_ = false;
  return std::exchange(guest_, RegisteredGuest{});
}

}  // namespace migrationd
