// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/open_image.hpp"

#include "base/log.hpp"
#include "base/read_at.hpp"
#include "protocol/stream/image_kind.hpp"
#include "transports/open_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <variant>

namespace migrationd::migration {

namespace {

using qmp::Capability;

stream::ReadAt reading(int fd) {
  return [fd](std::uint64_t offset, std::span<std::byte> into) { return read_at(fd, offset, into); };
}

// Whoever opens pages one by one must know where they are.
Result<void> look_at_lazy(const transports::FileAddress& file, qmp::Capabilities& capabilities,
                          transports::FdSource& descriptors) {
  auto opened = transports::open_file(file, descriptors);
  if (!opened) return {};
  MD_TRY(const stream::Image image, stream::recognise_image(reading(opened->fd.get()), file.offset));
  if (!image.decompressor().empty()) {
    return plan_error(
        fmt::format("'{}' is compressed: its pages cannot be had one by one; load it (without "
                    "__org.migrationd_instant-resume)",
                    printable(file.path, 4096)));
  }
  capabilities.set(Capability::mapped_ram, image.has_places());
  return {};
}

}  // namespace

Result<IncomingFile> look_at_incoming(const transports::Address& address, const qmp::Capabilities& capabilities,
                                      transports::FdSource& descriptors) {
  IncomingFile out{address, capabilities, {}, false};
  auto* const file = std::get_if<transports::FileAddress>(&out.address);
  if (file == nullptr) return out;
  if (capabilities.has(Capability::instant_resume)) MD_CHECK(look_at_lazy(*file, out.capabilities, descriptors));
  if (file->offset != 0) return out;
  auto opened = transports::open_file(*file, descriptors);
  if (!opened) return out;
  auto image = stream::recognise_image(reading(opened->fd.get()));
  if (!image || !image->save_image) return out;
  if (auto usable = image->check_usable(); !usable) {
    return std::move(usable).error().with(fmt::format("libvirt's save image '{}'", printable(file->path, 4096)));
  }
  file->offset = image->stream_offset;
  out.capabilities.set(Capability::mapped_ram, image->has_places());
  out.filter = image->decompressor_command();
  out.goes_on = image->libvirt->was_running;
  log::info("'{}' is a save image of libvirt ({}, {}); its stream begins at {}", printable(file->path, 4096),
            stream::to_name(image->libvirt->format), out.goes_on ? "running" : "paused", hex(file->offset));
  return out;
}

}  // namespace migrationd::migration
